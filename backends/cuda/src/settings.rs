//! The settings that the host passes, and those of a model.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_onnxruntime::{self as onnxruntime, GraphShapes, Graphs, Leftovers};

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// What others on ONNX Runtime have as well.
    pub(crate) common: onnxruntime::Settings,
    /// Folders of libraries, divided by `:`.
    pub(crate) libraries: Option<String>,
    /// The driver's library.
    pub(crate) driver: PathBuf,
    /// The most bytes that the arena of a device has; 0 is no limit.
    pub(crate) arena_bytes: usize,
    /// After how long a pause a run shrinks the arena.
    pub(crate) shrink: Option<Duration>,
    /// The folder of TensorRT's engines.
    pub(crate) tensorrt_cache: Option<PathBuf>,
    /// What holds where a model does not say.
    pub(crate) sessions: Sessions,
}

/// The longest pause before a run that shrinks the arena, in seconds.
const MOST_PAUSE: u64 = 86_400;
/// The most sets of shapes of a model whose runs are recorded, where it does not say.
const GRAPH_SHAPES: usize = 8;
/// And where it does: each has buffers of its own.
const MOST_GRAPH_SHAPES: usize = 1024;

/// What can be set for a model, too: how its sessions run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sessions {
    pub(crate) convolutions: Convolutions,
    pub(crate) tf32: bool,
    pub(crate) tensorrt: TensorRt,
    pub(crate) leftovers: Leftovers,
    /// For a model alone: of which shapes runs are recorded.
    graphs: Option<GraphShapes>,
    /// And of how many at most.
    graph_shapes: usize,
}

/// How cuDNN's algorithms for convolutions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Convolutions {
    Heuristic,
    Exhaustive,
    Default,
}

/// Whether TensorRT is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorRt {
    Off,
    On,
    Fp16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{key}`; there are {}", Settings::NAMES)]
    Unknown { key: String },
    #[error("there is no setting `{key}` for a model, only {}", Sessions::NAMES)]
    UnknownForModel { key: String },
    #[error("setting `{key}` is `{value}`, not {expected}")]
    Value { key: String, value: String, expected: &'static str },
    #[error("`{key}` is a setting of a model, not of all")]
    OnlyForModel { key: String },
    #[error("setting `{key}` is empty; leave it out for the default")]
    Empty { key: String },
    #[error(transparent)]
    Common(#[from] onnxruntime::SettingsError),
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            convolutions: Convolutions::Heuristic,
            tf32: true,
            tensorrt: TensorRt::Off,
            leftovers: Leftovers::Allowed,
            graphs: None,
            graph_shapes: GRAPH_SHAPES,
        }
    }
}

impl Settings {
    const NAMES: &str = "`onnxruntime`, `libraries`, `cuda_driver`, `cache`, `cache_bytes`, `arena_bytes`, `shrink`, `convolutions`, \
                         `tf32`, `tensorrt`, `tensorrt_cache` and `leftovers`";

    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self {
            common: onnxruntime::Settings::default(),
            libraries: None,
            driver: outrigger_cuda_driver::LIBRARY.into(),
            arena_bytes: 0,
            shrink: None,
            tensorrt_cache: None,
            sessions: Sessions::default(),
        };
        for (key, value) in pairs {
            match key.as_str() {
                "libraries" | "cuda_driver" | "tensorrt_cache" if value.is_empty() => {
                    return Err(SettingsError::Empty { key: key.clone() });
                }
                "libraries" => settings.libraries = Some(value.clone()),
                "cuda_driver" => settings.driver = value.into(),
                "tensorrt_cache" => settings.tensorrt_cache = Some(value.into()),
                "arena_bytes" => {
                    let bytes = value.parse().map_err(|_| wrong(key, value, "a number of bytes"));
                    settings.arena_bytes = bytes?;
                }
                "shrink" => {
                    settings.shrink = match value.as_str() {
                        "never" => None,
                        seconds => {
                            let seconds = seconds.parse().ok().filter(|seconds| *seconds <= MOST_PAUSE);
                            let expected = "`never` or a number of seconds to 86400";
                            Some(Duration::from_secs(seconds.ok_or_else(|| wrong(key, value, expected))?))
                        }
                    }
                }
                // Each model that has them has an arena of its own, and one run at a time.
                "graphs" | "graph_shapes" => return Err(SettingsError::OnlyForModel { key: key.clone() }),
                _ if settings.common.take(key, value)? => {}
                _ if settings.sessions.take(key, value)? => {}
                _ => return Err(SettingsError::Unknown { key: key.clone() }),
            }
        }
        Ok(settings)
    }
}

impl Sessions {
    const NAMES: &str = "`convolutions`, `tf32`, `tensorrt`, `leftovers`, `graphs` and `graph_shapes`";

    /// Which runs of the model are recorded.
    pub(crate) fn graphs(&self) -> Option<Graphs> {
        self.graphs.clone().map(|shapes| Graphs { shapes, most: self.graph_shapes })
    }

    /// As a model says, and as before where it does not.
    pub(crate) fn over(mut self, pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        for (key, value) in pairs {
            if !self.take(key, value)? {
                return Err(SettingsError::UnknownForModel { key: key.clone() });
            }
        }
        Ok(self)
    }

    /// Takes a setting, if it is one of these.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, SettingsError> {
        match key {
            "convolutions" => {
                self.convolutions = match value {
                    "heuristic" => Convolutions::Heuristic,
                    "exhaustive" => Convolutions::Exhaustive,
                    "default" => Convolutions::Default,
                    _ => return Err(wrong(key, value, "`heuristic`, `exhaustive` or `default`")),
                }
            }
            "tf32" => {
                self.tf32 = value.parse().map_err(|_| wrong(key, value, "`true` or `false`"))?;
            }
            "tensorrt" => {
                self.tensorrt = match value {
                    "false" => TensorRt::Off,
                    "true" => TensorRt::On,
                    "fp16" => TensorRt::Fp16,
                    _ => return Err(wrong(key, value, "`true`, `false` or `fp16`")),
                }
            }
            "leftovers" => {
                self.leftovers = match value {
                    "allowed" => Leftovers::Allowed,
                    "refused" => Leftovers::Refused,
                    _ => return Err(wrong(key, value, "`allowed` or `refused`")),
                }
            }
            "graphs" => {
                self.graphs = match value {
                    "off" => None,
                    "fixed" => Some(GraphShapes::Fixed),
                    sizes => {
                        let sizes =
                            sizes.split(',').map(|size| size.trim().parse().ok().filter(|size| *size > 0));
                        let sizes = sizes.collect::<Option<Vec<i64>>>();
                        let expected = "`off`, `fixed`, or batch sizes, as in `1,8,32`";
                        Some(GraphShapes::Batches(sizes.ok_or_else(|| wrong(key, value, expected))?))
                    }
                }
            }
            "graph_shapes" => {
                let most = value.parse().ok().filter(|most| (1..=MOST_GRAPH_SHAPES).contains(most));
                self.graph_shapes = most.ok_or_else(|| wrong(key, value, "a number from 1 to 1024"))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn wrong(key: &str, value: &str, expected: &'static str) -> SettingsError {
    SettingsError::Value { key: key.to_owned(), value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn settings_are_read() {
        let settings = Settings::read(&[]).unwrap();
        assert_eq!((settings.driver, settings.arena_bytes), ("libcuda.so.1".into(), 0));
        assert_eq!(settings.sessions, Sessions::default());
        let settings = Settings::read(&pairs(&[
            ("onnxruntime", "/ort.so"),
            ("libraries", "/a:/b"),
            ("cuda_driver", "/driver.so"),
            ("cache", "/c"),
            ("arena_bytes", "4096"),
            ("tensorrt_cache", "/t"),
            ("tensorrt", "fp16"),
            ("convolutions", "exhaustive"),
            ("tf32", "false"),
            ("leftovers", "refused"),
        ]))
        .unwrap();
        assert_eq!(settings.common.library, Some("/ort.so".into()));
        assert_eq!((settings.libraries, settings.driver), (Some("/a:/b".into()), "/driver.so".into()));
        assert_eq!((settings.common.cache, settings.tensorrt_cache), (Some("/c".into()), Some("/t".into())));
        let sessions = Sessions {
            convolutions: Convolutions::Exhaustive,
            tf32: false,
            tensorrt: TensorRt::Fp16,
            leftovers: Leftovers::Refused,
            ..Sessions::default()
        };
        assert_eq!((settings.arena_bytes, &settings.sessions), (4096, &sessions));
        // A model's go over them, one by one.
        let over = sessions.clone().over(&pairs(&[("tensorrt", "false"), ("tf32", "true")]));
        let model = over.unwrap();
        assert_eq!(model, Sessions { tensorrt: TensorRt::Off, tf32: true, ..sessions });
    }

    #[test]
    fn settings_are_strict() {
        let fails = |key, value, expected: &str| {
            assert_eq!(Settings::read(&pairs(&[(key, value)])).unwrap_err().to_string(), expected);
        };
        fails(
            "colour",
            "red",
            "unknown setting `colour`; there are `onnxruntime`, `libraries`, `cuda_driver`, `cache`, `cache_bytes`, `arena_bytes`, \
             `shrink`, `convolutions`, `tf32`, `tensorrt`, `tensorrt_cache` and `leftovers`",
        );
        for (value, shrink) in [("never", None), ("0", Some(0)), ("60", Some(60))] {
            let settings = Settings::read(&pairs(&[("shrink", value)])).unwrap();
            assert_eq!(settings.shrink, shrink.map(Duration::from_secs));
        }
        for value in ["idle", "86401", "-1"] {
            let expected = "not `never` or a number of seconds to 86400";
            fails("shrink", value, &format!("setting `shrink` is `{value}`, {expected}"));
        }
        fails("arena_bytes", "1GiB", "setting `arena_bytes` is `1GiB`, not a number of bytes");
        fails(
            "convolutions",
            "fast",
            "setting `convolutions` is `fast`, not `heuristic`, `exhaustive` or `default`",
        );
        fails("tf32", "1", "setting `tf32` is `1`, not `true` or `false`");
        fails("tensorrt", "int8", "setting `tensorrt` is `int8`, not `true`, `false` or `fp16`");
        fails("leftovers", "", "setting `leftovers` is ``, not `allowed` or `refused`");
        fails("libraries", "", "setting `libraries` is empty; leave it out for the default");
        fails("cache_bytes", "x", "setting `cache_bytes` is `x`, not a number of bytes");
        let model = Sessions::default().over(&pairs(&[("arena_bytes", "1")])).unwrap_err().to_string();
        assert_eq!(
            model,
            "there is no setting `arena_bytes` for a model, only `convolutions`, `tf32`, `tensorrt`, `leftovers`, `graphs` \
             and `graph_shapes`"
        );
        fails("graphs", "1", "`graphs` is a setting of a model, not of all");
    }

    #[test]
    fn graphs_are_a_model_s() {
        let graphs = |settings: &[(&str, &str)]| {
            let sessions = Sessions::default().over(&pairs(settings));
            sessions.map(|sessions| sessions.graphs()).map_err(|error| error.to_string())
        };
        let of = |shapes, most| Ok(Some(Graphs { shapes, most }));
        assert_eq!(graphs(&[]), Ok(None));
        assert_eq!(graphs(&[("graphs", "off")]), Ok(None));
        assert_eq!(graphs(&[("graphs", "fixed")]), of(GraphShapes::Fixed, 8));
        let sizes = [("graphs", "1, 8,32"), ("graph_shapes", "2")];
        assert_eq!(graphs(&sizes), of(GraphShapes::Batches(vec![1, 8, 32]), 2));
        for value in ["", "0", "1,", "all", "-1"] {
            let error = graphs(&[("graphs", value)]).unwrap_err();
            assert!(
                error.starts_with(&format!("setting `graphs` is `{value}`, not `off`, `fixed`, or")),
                "{error}"
            );
        }
        for value in ["0", "1025", "x"] {
            let error = graphs(&[("graph_shapes", value)]).unwrap_err();
            assert_eq!(error, format!("setting `graph_shapes` is `{value}`, not a number from 1 to 1024"));
        }
    }
}
