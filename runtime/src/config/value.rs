//! Values of configuration keys: their kinds, how text becomes one, how one is shown.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outrigger_store::LocationText;

/// What values a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// A file or directory; relative to the configuration file, or to the working directory from flag and environment.
    Path,
    /// A program: a name that is looked up in PATH, or, with a slash, a path.
    Program,
    /// A whole number.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number that may have a fraction.
    Number {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// `true` or `false`.
    Flag,
    /// A number with a unit: `500ms`, `30s`, `5m`, `1h`.
    Duration,
    /// The same, and more than nothing.
    Timeout,
    /// The same as [`Kind::Duration`], or `auto`.
    Delay,
    /// A number with a unit: `512B`, `64KiB`, `100MiB`, `1GiB`.
    Size {
        /// Smallest, in bytes.
        min: u64,
        /// Largest, in bytes.
        max: u64,
    },
    /// `IP:PORT`.
    Address,
    /// `IP:PORT` or `unix:PATH`.
    Endpoint,
    /// Texts: an array in the file, separated by commas elsewhere.
    List,
    /// One of a few words.
    OneOf(&'static [&'static str]),
    /// A folder, or a URL, which is shown without what may be a secret in it.
    Location,
    /// Text that is never shown.
    Secret,
}

/// A value that fits its key's kind.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// Of [`Kind::Text`] and [`Kind::OneOf`], and `auto` of [`Kind::Delay`].
    Text(String),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Count`].
    Count(u64),
    /// Of [`Kind::Number`].
    Number(f64),
    /// Of [`Kind::Flag`].
    Flag(bool),
    /// Of [`Kind::Duration`], [`Kind::Timeout`] and [`Kind::Delay`].
    Duration(Duration),
    /// Of [`Kind::Size`], in bytes.
    Size(u64),
    /// Of [`Kind::Address`] and [`Kind::Endpoint`].
    Endpoint(Endpoint),
    /// Of [`Kind::List`].
    List(Vec<String>),
    /// Of [`Kind::Location`].
    Location(LocationText),
    /// Of [`Kind::Secret`].
    Secret(String),
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Kind {
    /// What a value looks like, for error messages.
    pub fn expects(self) -> String {
        match self {
            Self::Text | Self::Secret => "text".into(),
            Self::Location => "a folder or a URL".into(),
            Self::Path => "a path".into(),
            Self::Program => "a program's name or path".into(),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Flag => "true or false".into(),
            Self::Duration => "a time with its unit, such as 500ms, 30s, 5m or 1h".into(),
            Self::Timeout => "a time with its unit, such as 500ms, 30s, 5m or 1h, more than 0".into(),
            Self::Delay => "a time with its unit, such as 500us or 2ms, or auto".into(),
            Self::Size { min, max } => {
                format!("a size with its unit, such as 64KiB or 100MiB, from {} to {}", Size(min), Size(max))
            }
            Self::Address => "IP:PORT, such as 127.0.0.1:5001".into(),
            Self::Endpoint => "IP:PORT or unix:PATH".into(),
            Self::List => "a list of texts".into(),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// Reads a value from text; `None` if it is not of this kind.
    pub fn parse(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::Text(text.to_owned()),
            Self::Location => Value::Location(LocationText::new(text)),
            Self::Secret => Value::Secret(text.to_owned()),
            Self::Path | Self::Program if text.is_empty() => return None,
            Self::Program if !text.contains('/') => Value::Text(text.to_owned()),
            Self::Path | Self::Program => Value::Path(PathBuf::from(text)),
            Self::Count { min, max } => {
                Value::Count(text.trim().parse().ok().filter(|count| (min..=max).contains(count))?)
            }
            Self::Number { min, max } => {
                Value::Number(text.trim().parse().ok().filter(|number| (min..=max).contains(number))?)
            }
            Self::Flag => Value::Flag(match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => true,
                "false" | "0" | "no" | "off" => false,
                _ => return None,
            }),
            Self::Duration => Value::Duration(parse_duration(text)?),
            Self::Timeout => Value::Duration(parse_duration(text).filter(|time| !time.is_zero())?),
            Self::Delay if text.trim().eq_ignore_ascii_case("auto") => Value::Text("auto".into()),
            Self::Delay => Value::Duration(parse_duration(text)?),
            Self::Size { min, max } => {
                Value::Size(parse_size(text).filter(|size| (min..=max).contains(size))?)
            }
            Self::Address => Value::Endpoint(Endpoint::Tcp(text.trim().parse().ok()?)),
            Self::Endpoint => Value::Endpoint(match text.strip_prefix("unix:") {
                Some("") => return None,
                Some(path) => Endpoint::Unix(PathBuf::from(path)),
                None => Endpoint::Tcp(text.trim().parse().ok()?),
            }),
            Self::List => Value::List(
                text.split(',').map(|item| item.trim().to_owned()).filter(|i| !i.is_empty()).collect(),
            ),
            Self::OneOf(words) => {
                let word = text.trim().to_ascii_lowercase();
                // Python's names of log levels, which AzureML's variable carries.
                let word = match word.as_str() {
                    "warning" => "warn".to_owned(),
                    "critical" | "fatal" => "error".to_owned(),
                    _ => word,
                };
                words.contains(&word.as_str()).then_some(Value::Text(word))?
            }
        })
    }
}

/// Splits `12.5ms` into number and unit.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A time as the configuration has it: `250ms`, `90s`, `1.5h`; a year at most.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    // A year is more than anything here waits, and keeps deadlines far from overflow. Whole microseconds are what can be shown.
    let time = Duration::try_from_secs_f64(number * seconds).ok().filter(|d| d.as_secs() <= 366 * 86400)?;
    let micros = (time.as_nanos() + 500) / 1000;
    Some(Duration::from_micros(u64::try_from(micros).ok()?))
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "B" => 1u64,
        "KiB" | "K" | "Ki" => 1 << 10,
        "MiB" | "M" | "Mi" => 1 << 20,
        "GiB" | "G" | "Gi" => 1 << 30,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let bytes = number * factor as f64;
    (bytes.is_finite() && bytes < 1e18).then_some(bytes as u64)
}

/// Shows a number of bytes with the largest unit that divides it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Shows a time as the configuration takes it.
fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    for (factor, unit) in [(3_600_000_000u128, "h"), (60_000_000, "m"), (1_000_000, "s"), (1000, "ms")] {
        if micros >= factor && micros.is_multiple_of(factor) {
            return format!("{}{unit}", micros / factor);
        }
    }
    if micros == 0 { "0s".into() } else { format!("{micros}us") }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// As TOML, so that what `--check` prints can be used as a file. Secrets are masked.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Path(path) => f.write_str(&quoted(&path.to_string_lossy())),
            Self::Count(count) => write!(f, "{count}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Duration(duration) => f.write_str(&quoted(&show_duration(*duration))),
            Self::Size(size) => f.write_str(&quoted(&Size(*size).to_string())),
            Self::Endpoint(endpoint) => f.write_str(&quoted(&endpoint.to_string())),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Location(location) => f.write_str(&quoted(&location.to_string())),
            Self::Secret(_) => f.write_str("\"***\""),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_values_and_back() {
        let check = |kind: Kind, text: &str, shown: Option<&str>| {
            let value = kind.parse(text).map(|value| value.to_string());
            assert_eq!(value.as_deref(), shown, "{kind:?} {text}");
        };
        let any = Kind::Size { min: 0, max: u64::MAX };
        check(Kind::Duration, "500ms", Some("\"500ms\""));
        check(Kind::Duration, "1.5s", Some("\"1500ms\""));
        check(Kind::Duration, "120s", Some("\"2m\""));
        check(Kind::Duration, "0s", Some("\"0s\""));
        check(Kind::Timeout, "1ms", Some("\"1ms\""));
        check(Kind::Timeout, "0s", None);
        // What is shown has whole microseconds.
        check(Kind::Timeout, "0.1us", None);
        check(Kind::Duration, "1.6us", Some("\"2us\""));
        check(Kind::Delay, "0s", Some("\"0s\""));
        check(Kind::Delay, "500us", Some("\"500us\""));
        check(Kind::Delay, "Auto", Some("\"auto\""));
        check(Kind::Delay, "automatic", None);
        check(Kind::OneOf(&["warn", "error"]), "WARNING", Some("\"warn\""));
        check(Kind::Duration, "60", None);
        check(Kind::Duration, "-1s", None);
        check(Kind::Duration, "99999999999999999h", None);
        check(any, "100MiB", Some("\"100MiB\""));
        check(any, "1.5KiB", Some("\"1536B\""));
        check(any, "3 MB", Some("\"3000000B\""));
        check(any, "100", None);
        check(Kind::Size { min: 10, max: 20 }, "21B", None);
        check(Kind::Count { min: 1, max: 8 }, "8", Some("8"));
        check(Kind::Count { min: 1, max: 8 }, "9", None);
        check(Kind::Number { min: 0.5, max: 8.0 }, "0.5", Some("0.5"));
        check(Kind::Number { min: 0.5, max: 8.0 }, "8", Some("8"));
        check(Kind::Number { min: 0.5, max: 8.0 }, "8.01", None);
        check(Kind::Number { min: 0.5, max: 8.0 }, "nan", None);
        check(Kind::Number { min: 0.5, max: f64::MAX }, "inf", None);
        check(Kind::Flag, "True", Some("true"));
        check(Kind::Flag, "maybe", None);
        check(Kind::Address, "[::1]:80", Some("\"[::1]:80\""));
        check(Kind::Address, "localhost:80", None);
        check(Kind::Endpoint, "unix:/run/a.sock", Some("\"unix:/run/a.sock\""));
        check(Kind::List, "a, b,", Some("[\"a\", \"b\"]"));
        check(Kind::OneOf(&["text", "json"]), "JSON", Some("\"json\""));
        check(Kind::OneOf(&["text", "json"]), "xml", None);
        check(Kind::Location, "az://a/b?sig=hush", Some("\"az://a/b?***\""));
        check(Kind::Location, "az://a/\u{7f}", Some("\"az://a/\\u007F\""));
        check(Kind::Secret, "hush", Some("\"***\""));
        check(Kind::Path, "", None);
    }

    #[test]
    fn secrets_never_show() {
        assert_eq!(format!("{:?}", Value::Secret("hush".into())), "\"***\"");
    }
}
