//! `outrigger models list`: which versions there are.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use outrigger_runtime::config::{StoreConfig, key};
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
        let versions = versions
            .into_iter()
            .filter(|found| wish.version.is_none_or(|version| found.id.version == version));
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
        let Listed { id, files, size, pushed } = found;
        serde_json::json!({
            "name": id.name, "version": id.version, "files": files, "bytes": size, "pushed": time(*pushed)})
    });
    let models: Vec<_> = models.collect();
    Ok(format!("{}\n", serde_json::to_string_pretty(&serde_json::json!({ "models": models }))?))
}

fn text(listed: &[Listed]) -> String {
    let mut table = Table::new(&["NAME", "VERSION", "FILES", "SIZE", "PUSHED"]);
    for Listed { id, files, size: bytes, pushed } in listed {
        let cells = [
            id.name.to_string(),
            id.version.to_string(),
            files.to_string(),
            size(Some(*bytes)),
            time(*pushed),
        ];
        table.row(cells, []);
    }
    table.show()
}

/// Seconds since 1970 as `2024-01-31T12:00:00Z`.
fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 as a date of the Gregorian calendar, by counting in years that begin in March, so that the day a leap year adds is their last.
fn date(days: i64) -> (i64, i64, i64) {
    // Days since 1 March of the year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + cycle * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }
}
