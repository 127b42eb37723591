//! The rule about listening beyond loopback: who can come there, and who can read along.
//!
//! Without keys anybody could score; with keys and without TLS anybody on the way could read them. Either has to be asked for by its name, and is then said in
//! the log. In a container the address is that of the container, and who reaches it, and over what, is for who runs the container to say.

use std::net::{IpAddr, SocketAddr};

use super::key::{AUTH_ENABLED, Key, SCORE_LISTEN};

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exposure {
    /// `score.listen`.
    pub(super) score: SocketAddr,
    /// `observe.listen`.
    pub(super) observe: SocketAddr,
    /// Whether scoring needs a key.
    pub(super) auth: bool,
    /// Whether scoring speaks TLS.
    pub(super) tls: bool,
    /// Whether nobody comes who shows no certificate.
    pub(super) requires_certificates: bool,
    /// Whether the process is in a container.
    pub(super) container: bool,
    /// `auth.allow_open`.
    pub(super) allow_open: bool,
    /// `tls.allow_plain`.
    pub(super) allow_plain: bool,
}

/// What it says.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// What must not be, by the key that it is about.
    pub(super) refused: Option<(&'static Key, String)>,
    /// What the log is to say.
    pub(super) warnings: Vec<String>,
}

fn is_beyond(address: SocketAddr) -> bool {
    let ip: IpAddr = address.ip().to_canonical();
    !ip.is_loopback()
}

/// Judges.
pub(super) fn judge(exposure: &Exposure) -> Verdict {
    let Exposure { score, observe, auth, tls, requires_certificates, container, allow_open, allow_plain } =
        *exposure;
    let mut verdict = Verdict::default();
    // Whoever has a certificate is somebody whom the operator's authority knows.
    let open = !auth && !requires_certificates;
    if is_beyond(score) && open {
        if allow_open {
            let text = format!(
                "`auth.enabled = false` while `score.listen` is {score}: anybody who reaches it can score"
            );
            verdict.warnings.push(text);
        } else {
            let text = format!(
                "`auth.enabled = false` while `score.listen` is {score}: anybody could score; set `auth.allow_open = true` (--auth-allow-open) if that is meant"
            );
            verdict.refused = Some((AUTH_ENABLED, text));
        }
    } else if is_beyond(score) && !tls && !container {
        if allow_plain {
            let text = format!(
                "`score.listen` is {score}, without TLS: keys and requests can be read by whoever is on their way"
            );
            verdict.warnings.push(text);
        } else {
            let text = format!(
                "`score.listen` is {score}, and without TLS keys and requests could be read by whoever is on their way: set `tls.certificate` and `tls.key`, \
                 or `tls.allow_plain = true` (--tls-allow-plain) where something in front speaks TLS; in a container that was not found to be one, \
                 `process.container = \"true\"` (OUTRIGGER_PROCESS_CONTAINER=true)"
            );
            verdict.refused = Some((SCORE_LISTEN, text));
        }
    }
    if is_beyond(observe) && !container {
        let text = format!(
            "`observe.listen` is {observe}: whoever reaches it sees metrics and how busy the replica is, without a key"
        );
        verdict.warnings.push(text);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:5001";
    const ALL: &str = "0.0.0.0:5001";

    /// `flags`: what is true of `auth tls certificates container open plain`.
    fn verdict(score: &str, flags: &str) -> Verdict {
        let has = |word: &str| flags.split(' ').any(|flag| flag == word);
        judge(&Exposure {
            score: score.parse().unwrap(),
            observe: LOOPBACK.parse().unwrap(),
            auth: has("auth"),
            tls: has("tls") || has("certificates"),
            requires_certificates: has("certificates"),
            container: has("container"),
            allow_open: has("open"),
            allow_plain: has("plain"),
        })
    }

    #[test]
    fn the_table() {
        let check = |score: &str, flags: &str, expected: &str| {
            let verdict = verdict(score, flags);
            let said = match (&verdict.refused, verdict.warnings.as_slice()) {
                (None, []) => "fine".to_owned(),
                (None, [_]) => "warns".to_owned(),
                (Some((_, text)), []) if text.contains("auth.allow_open = true") => "auth.allow_open".into(),
                (Some((_, text)), []) if text.contains("tls.allow_plain = true") => "tls.allow_plain".into(),
                other => format!("{other:?}"),
            };
            assert_eq!(said, expected, "{score} {flags}");
        };
        // On loopback everything may be.
        for score in [LOOPBACK, "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            for flags in ["", "auth", "auth tls", "container", "open plain"] {
                check(score, flags, "fine");
            }
        }
        for score in [ALL, "[::]:1", "10.1.2.3:1", "[fe80::1]:1", "[::ffff:10.1.2.3]:1"] {
            // Without auth: the flag, wherever it is, with TLS or without.
            for flags in ["", "tls", "container", "tls container", "plain", "plain tls container"] {
                check(score, flags, "auth.allow_open");
            }
            for flags in ["open", "open tls", "open container", "open plain"] {
                check(score, flags, "warns");
            }
            // With it: TLS, a container, or the flag.
            check(score, "auth", "tls.allow_plain");
            check(score, "auth open", "tls.allow_plain");
            check(score, "auth plain", "warns");
            for flags in
                ["auth tls", "auth container", "auth container plain", "auth tls plain", "auth tls container"]
            {
                check(score, flags, "fine");
            }
            // Certificates that are required are auth too.
            for flags in ["certificates", "certificates container", "auth certificates"] {
                check(score, flags, "fine");
            }
        }
    }

    #[test]
    fn probes_that_everybody_can_ask_are_said_where_it_is_no_container() {
        let exposure = |observe: &str, container| Exposure {
            score: LOOPBACK.parse().unwrap(),
            observe: observe.parse().unwrap(),
            auth: true,
            tls: false,
            requires_certificates: false,
            container,
            allow_open: false,
            allow_plain: false,
        };
        assert!(judge(&exposure(LOOPBACK, false)).warnings.is_empty());
        assert!(judge(&exposure("0.0.0.0:5002", true)).warnings.is_empty());
        let said = judge(&exposure("0.0.0.0:5002", false));
        assert!(said.refused.is_none() && said.warnings[0].contains("observe.listen"), "{said:?}");
    }
}
