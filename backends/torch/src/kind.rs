//! Kinds of devices that libtorch has.

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
}

/// By which setting the plug-in tells the library that it opens which kind it is for. No user's setting.
const SETTING: &str = "kind";

impl Kind {
    /// The backend's name.
    pub(crate) fn backend(self) -> &'static str {
        match self {
            Self::Cpu => "cpu_torch",
            Self::Cuda => "cuda_torch",
        }
    }

    /// What can be set, for messages.
    pub(crate) fn settings(self) -> &'static str {
        match self {
            Self::Cpu => "`libtorch`, `intra_threads` and `code_bytes`",
            Self::Cuda => "`libtorch`, `intra_threads`, `code_bytes`, `cuda_driver` and `memory_bytes`",
        }
    }

    /// Itself as a setting.
    pub(crate) fn setting(self) -> (String, String) {
        (SETTING.into(), self.backend().into())
    }

    /// What a plug-in has put among the settings, and the rest of them.
    #[cfg(any(feature = "libtorch", test))]
    pub(crate) fn of(settings: &[(String, String)]) -> (Self, Vec<(String, String)>) {
        let (own, rest): (Vec<_>, Vec<_>) = settings.iter().cloned().partition(|(key, _)| key == SETTING);
        let is_cuda = own.last().is_some_and(|(_, kind)| kind == Self::Cuda.backend());
        (if is_cuda { Self::Cuda } else { Self::Cpu }, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_passes_among_settings() {
        let other = ("code_bytes".to_owned(), "7".to_owned());
        for kind in [Kind::Cpu, Kind::Cuda] {
            assert_eq!(Kind::of(&[kind.setting(), other.clone()]), (kind, vec![other.clone()]));
        }
        assert_eq!(Kind::of(std::slice::from_ref(&other)), (Kind::Cpu, vec![other]));
    }
}
