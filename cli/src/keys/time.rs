//! Times of keys: how long they live, and dates for people.

use anyhow::{Context as _, bail};
use time::OffsetDateTime;

const DAY: u64 = 86_400;
/// The longest that a key lives which has an end: a hundred years.
const LONGEST: u64 = 36_525 * DAY;

/// `90d`, `12h`, `30m` or `45s`; `never` is no end.
pub(super) fn lifetime(text: &str) -> anyhow::Result<Option<u64>> {
    if text == "never" {
        return Ok(None);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => DAY,
        Some('y') => 365 * DAY,
        _ => bail!("`{text}` is no lifetime, such as 90d, 12h, 30m, 45s or 1y, or `never`"),
    };
    let number = &text[..text.len() - 1];
    let count: u64 =
        number.parse().with_context(|| format!("`{text}` is no lifetime, such as 90d, or `never`"))?;
    match count.checked_mul(unit) {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Some(seconds)),
        _ => bail!("`{text}` is no lifetime: from a second to a hundred years"),
    }
}

/// Seconds since 1970 as `2026-03-01 12:00:00Z`.
pub(super) fn shown(seconds: u64) -> String {
    let time =
        i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    // Beyond the year 9999 there is nothing that anybody waits for.
    let Some(time) = time else { return format!("{seconds} s after 1970") };
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    format!("{date} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let check =
            |text: &str, expected: Option<Option<u64>>| assert_eq!(lifetime(text).ok(), expected, "{text}");
        check("90d", Some(Some(90 * DAY)));
        check("12h", Some(Some(43_200)));
        check("45s", Some(Some(45)));
        check("1y", Some(Some(365 * DAY)));
        check("never", Some(None));
        for wrong in ["", "d", "90", "0d", "-1d", "1.5d", "90 d", "101y", "99999999999999999999d", "1é"] {
            check(wrong, None);
        }
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_827_696, "2000-02-29 12:34:56Z"),
            (1_709_210_096, "2024-02-29 12:34:56Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(shown(seconds), text);
        }
    }
}
