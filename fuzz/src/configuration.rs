//! What holds of any configuration.

use outrigger_runtime::config::{self, Sources, azureml, observe_address};

/// Reads one. What is in force is shown as a file, which says the same when it is read.
///
/// # Panics
/// If it does not.
pub fn check(sources: &Sources) {
    let _ = (azureml::candidates(sources), observe_address(sources));
    let (_, settings) = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "what is refused is refused for a reason");
            assert!(mistakes.iter().all(|mistake| !mistake.problem.is_empty()));
            return;
        }
    };
    let shown = settings.show();
    if let Err(error) = shown.parse::<toml::Table>() {
        panic!("{error}\n{shown}");
    }
    if shown.contains("***") {
        // Secrets are not shown.
        return;
    }
    let again = Sources { file: Some(("/etc/o.toml".into(), shown.clone())), ..files_alone(sources) };
    match config::load(&again) {
        Ok((_, settings)) => assert_eq!(values(&settings.show()), values(&shown)),
        Err(mistakes) => {
            let said: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            panic!("{}\n{shown}", said.join("\n"));
        }
    }
}

fn files_alone(sources: &Sources) -> Sources {
    Sources {
        environment: vec![("HOME".into(), "/home/u".into())],
        working_directory: sources.working_directory.clone(),
        ..Sources::default()
    }
}

/// Without where each came from.
fn values(shown: &str) -> toml::Table {
    shown.parse().expect("it was one before")
}
