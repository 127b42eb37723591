//! `outrigger models label`: what a version is called, such as `stable`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use outrigger_runtime::config::{StoreConfig, key};
use outrigger_store::{Label, ModelWish, Which};

pub(super) fn command() -> Command {
    let command = Command::new("label")
        .about("Has a label, such as `stable`, stand for a version, or moves it there; who asks for NAME@LABEL gets that version")
        .arg(Arg::new("wish").value_name("NAME[:VERSION|@LABEL]").required(true).help("The version: by its number, another label, or else the latest"))
        .arg(Arg::new("label").value_name("LABEL").required_unless_present("remove").conflicts_with("remove").help("What it is to be called"))
        .arg(Arg::new("remove").long("remove").action(ArgAction::SetTrue).help("Takes the label of NAME@LABEL away"));
    super::settings(command, &[key::STORE_REGISTRY])
}

pub(super) async fn run(config: &StoreConfig, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let registry = super::registry(config)?;
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let wish: ModelWish = text("wish").parse()?;
    if matches.get_flag("remove") {
        let Which::Label(label) = &wish.which else {
            anyhow::bail!("`{wish}` names no label to take away, such as {}@stable", wish.name);
        };
        registry.unlabel(&wish.name, label).await.with_context(|| format!("`{wish}` is not taken away"))?;
        println!("{wish} is taken away");
        return Ok(ExitCode::SUCCESS);
    }
    let label: Label = text("label").parse()?;
    let id = registry.resolve(&wish).await?;
    registry.label(&id, &label).await.with_context(|| format!("{id} is not labelled"))?;
    println!("{}@{label} is {id}", id.name);
    Ok(ExitCode::SUCCESS)
}
