//! Which CPUs the threads of a pool run on.

use std::num::NonZeroUsize;

/// The most that the kernel's fixed set of CPUs holds, and more than any machine has.
const MOST_CPUS: usize = 1024;

/// CPUs, ascending, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Affinity(Vec<usize>);

/// Why a list of CPUs cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AffinityError {
    #[error("setting `affinity` is `{0}`, not a list of CPUs such as `0-3,8` with numbers below {MOST_CPUS}")]
    Syntax(String),
    #[error(
        "setting `affinity` names CPU {cpu}, which this process may not use; it may use {allowed} \
         (name some of these, or widen the container's CPU set)"
    )]
    NotAllowed { cpu: usize, allowed: String },
    #[error("setting `affinity` is not supported on this operating system; leave it out")]
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "for the other operating systems"))]
    Unsupported,
}

impl Affinity {
    /// Reads a list such as `0-3,8`, and holds it against what the process may use.
    pub(crate) fn read(text: &str) -> Result<Self, AffinityError> {
        let cpus = parse(text).ok_or_else(|| AffinityError::Syntax(text.to_owned()))?;
        let allowed = allowed()?;
        match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(&cpu) => Err(AffinityError::NotAllowed { cpu, allowed: show(&allowed) }),
            None => Ok(Self(cpus)),
        }
    }

    /// How many CPUs.
    pub(crate) fn len(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.0.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// What ONNX Runtime takes for a pool of `threads`: each of its own threads, which is one fewer as the caller takes part,
    /// may run on any of the CPUs. `None` where the pool has no thread of its own.
    pub(crate) fn for_pool(&self, threads: usize) -> Option<String> {
        // ONNX Runtime counts CPUs from 1.
        let each = self.0.iter().map(|cpu| (cpu + 1).to_string()).collect::<Vec<_>>().join(",");
        let own = threads.saturating_sub(1);
        (own > 0).then(|| vec![each; own].join(";"))
    }
}

fn parse(text: &str) -> Option<Vec<usize>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>().ok().filter(|cpu| digits && *cpu < MOST_CPUS)
    };
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first.trim())?, number(last.trim())?),
            None => (number(part)?, number(part)?),
        };
        if first > last || cpus.len() > MOST_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// As the kernel writes it: `0-3,8`.
fn show(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let parts = parts.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(target_os = "linux")]
fn allowed() -> Result<Vec<usize>, AffinityError> {
    // A kernel that does not say allows all.
    let set = rustix::thread::sched_getaffinity(None).ok();
    let is_allowed = |cpu: &usize| set.as_ref().is_none_or(|set| set.is_set(*cpu));
    Ok((0..MOST_CPUS).filter(is_allowed).collect())
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Result<Vec<usize>, AffinityError> {
    Err(AffinityError::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, expected, shown) in [
            ("0", vec![0], "0"),
            ("0-3,8", vec![0, 1, 2, 3, 8], "0-3,8"),
            (" 8 , 1 - 2,2", vec![1, 2, 8], "1-2,8"),
            ("1023", vec![1023], "1023"),
        ] {
            let cpus = parse(text).unwrap();
            assert_eq!((&cpus, show(&cpus).as_str()), (&expected, shown));
        }
        let endless = vec!["0-1023"; 5000].join(",");
        for text in ["", ",", "1-", "-1", "3-1", "+1", "1024", "0-99999999999999999999", "a", "1;2", &endless]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn pools_have_a_thread_fewer_than_asked_for() {
        let affinity = Affinity(vec![0, 8]);
        assert_eq!(affinity.for_pool(1), None);
        assert_eq!(affinity.for_pool(2).as_deref(), Some("1,9"));
        assert_eq!(affinity.for_pool(3).as_deref(), Some("1,9;1,9"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_not_there_is_named_with_what_is() {
        let allowed = allowed().unwrap();
        let affinity = Affinity::read(&show(&allowed)).unwrap();
        assert_eq!(affinity.len().get(), allowed.len());
        let cpu = (0..MOST_CPUS).find(|cpu| !allowed.contains(cpu)).unwrap();
        let text = Affinity::read(&cpu.to_string()).unwrap_err().to_string();
        let expected =
            format!("setting `affinity` names CPU {cpu}, which this process may not use; it may use ");
        assert!(text.starts_with(&expected) && text.contains(&show(&allowed)), "{text}");
        let text = Affinity::read("all").unwrap_err().to_string();
        assert!(
            text.starts_with("setting `affinity` is `all`, not a list of CPUs such as `0-3,8`"),
            "{text}"
        );
    }
}
