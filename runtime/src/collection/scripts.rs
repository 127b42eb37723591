//! What a script needs to hand over what it collects: variables that say where, a list of what is collected, and a port that its sandbox lets through.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use outrigger_sandbox::Network;
use serde_json::json;

use super::Collecting;
use crate::config::{MODELDATA, REQUEST, RESPONSE, ScriptConfig};

/// The list of what is collected, as `azureml-ai-monitoring` reads it.
const LIST: &str = "collections.json";

impl Collecting {
    /// Tells a script of a listener. The list is kept in `folder`; where it cannot be written, as the disk may be full, the script finds out about a
    /// collection that is not there when what it hands over is refused.
    pub(crate) fn tell(&self, script: &mut ScriptConfig, at: SocketAddr, folder: &Path) {
        let list = match self.list(folder) {
            Ok(list) => {
                script.sandbox.read.push(list.clone());
                ("AZUREML_MDC_CONFIG_PATH", list.display().to_string())
            }
            Err(error) => {
                tracing::warn!(%error, "scripts cannot be told which collections there are");
                ("AZUREML_MDC_ENABLED", "true".to_owned())
            }
        };
        let variables = [
            ("AZUREML_MDC_HOST", at.ip().to_string()),
            ("AZUREML_MDC_PORT", at.port().to_string()),
            ("AML_MODEL_DC_STORAGE_ENABLED", self.rows().is_some().to_string()),
            list,
        ];
        script.environment.extend(variables.map(|(name, value)| (name.to_owned(), value)));
        script.sandbox.network = match std::mem::replace(&mut script.sandbox.network, Network::Off) {
            Network::On => Network::On,
            Network::Off => Network::Ports(vec![at.port()]),
            Network::Ports(ports) => Network::Ports(ports.into_iter().chain([at.port()]).collect()),
        };
    }

    /// Writes the list.
    fn list(&self, folder: &Path) -> io::Result<PathBuf> {
        let list = folder.join(LIST);
        let names = self.config.settings.collections.keys();
        let own = names.filter(|name| ![REQUEST, RESPONSE, MODELDATA].contains(&name.as_str()));
        // What is sampled is decided here, so that it is the same for all that belongs to a request.
        let own = own.map(|name| (name.clone(), json!({ "enabled": true, "sampleRatePercentage": 100 })));
        let text = json!({ "runMode": "cloud", "collections": own.collect::<serde_json::Map<_, _>>() });
        // All at once: another replica of the same folder may be reading it.
        let fresh = folder.join(format!(".{LIST}.{}", std::process::id()));
        std::fs::write(&fresh, text.to_string())?;
        std::fs::rename(&fresh, &list)?;
        Ok(list)
    }
}
