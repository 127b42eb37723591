//! `outrigger models list`: which versions there are.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use outrigger_runtime::config::{StoreConfig, key};
use outrigger_store::Which;
use outrigger_store::registry::Listed;

use crate::plan;
use crate::table::{Table, size};

pub(super) fn command() -> Command {
    let command = Command::new("list")
        .about("Lists the versions of all models, or of those that are named; what is being pushed is not among them")
        .arg(super::models_argument("Models of which the versions are listed, or single versions [default: all]"))
        .arg(plan::json_flag());
    super::settings(command, &[key::STORE_REGISTRY])
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let registry = super::registry(config)?;
    let wishes = super::wishes(matches)?;
    let mut listed = Vec::new();
    if wishes.is_empty() {
        listed = registry.list().await?;
    }
    for wish in &wishes {
        let versions = registry.versions(&wish.name).await?;
        let versions = versions.into_iter().filter(|found| match &wish.which {
            Which::Latest => true,
            Which::Version(version) => found.id.version == *version,
            Which::Label(label) => found.labels.contains(label),
        });
        let before = listed.len();
        listed.extend(versions);
        anyhow::ensure!(listed.len() > before, "`{wish}` is not in {}", registry.at());
    }
    let shown = if matches.get_flag("json") { json(&listed)? } else { text(&listed) };
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(shown.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn json(listed: &[Listed]) -> anyhow::Result<String> {
    let models = listed.iter().map(|found| {
        let Listed { id, files, size, labels, pushed } = found;
        serde_json::json!({
            "name": id.name, "version": id.version, "labels": labels, "files": files, "bytes": size, "pushed": pushed})
    });
    let models: Vec<_> = models.collect();
    Ok(format!("{}\n", serde_json::to_string_pretty(&serde_json::json!({ "models": models }))?))
}

fn text(listed: &[Listed]) -> String {
    let mut table = Table::new(&["NAME", "VERSION", "LABELS", "FILES", "SIZE", "PUSHED"]);
    for Listed { id, files, size: bytes, labels, pushed } in listed {
        let labels: Vec<_> = labels.iter().map(ToString::to_string).collect();
        let cells = [
            id.name.to_string(),
            id.version.to_string(),
            labels.join(" "),
            files.to_string(),
            size(Some(*bytes)),
            pushed.clone(),
        ];
        table.row(cells, []);
    }
    table.show()
}
