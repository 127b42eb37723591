//! Where the steps of a model run: on the CPU, or on the model's device as part of its graph.

use outrigger_backend::{BackendError, DeviceKind, LoadOptions, ModelInfo};
use outrigger_processing::{Around, SETTING, WITH_STEPS};

use crate::config::StepsWish;
use crate::models::survey::OpenDevice;
use crate::models::wanted::Wanted;

/// The backend on whose devices no steps have been in a graph yet.
const UNTRIED: &str = "cuda";

/// Where the steps of one side run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// In the graph of the model, on its device.
    Graph,
    /// On the CPU, and why.
    Cpu(String),
}

/// Where the steps of a model run that goes to a device; nothing for a side without steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::models) struct StepsPlace {
    pub(super) before: Option<Where>,
    pub(super) after: Option<Where>,
}

impl StepsPlace {
    /// Asks the device.
    pub(in crate::models) fn ask(wanted: &Wanted, open: &OpenDevice) -> Self {
        let Some(manifest) = &wanted.manifest else { return Self::default() };
        let one = |has_steps: bool, only: &dyn Fn() -> Self| {
            if !has_steps {
                return None;
            }
            Some(match beforehand(wanted, open) {
                Some(why) => Where::Cpu(why),
                None => match open.device.estimate(&only().options(wanted)) {
                    Ok(_) => Where::Graph,
                    Err(error) => Where::Cpu(reason(wanted, error)),
                },
            })
        };
        let graph = |has_steps: bool| has_steps.then_some(Where::Graph);
        let [before, after] = [&manifest.before, &manifest.after].map(|chain| !chain.stages.is_empty());
        let both = || Self { before: graph(before), after: graph(after) };
        // What one side makes of the names of extents the other one sees.
        let refused = match before && after && beforehand(wanted, open).is_none() {
            true => match open.device.estimate(&both().options(wanted)) {
                Ok(_) => return both(),
                Err(error) => Some(reason(wanted, error)),
            },
            false => None,
        };
        let mut place = Self {
            before: one(before, &|| Self { before: graph(true), after: None }),
            after: one(after, &|| Self { before: None, after: graph(true) }),
        };
        if let (Some(Where::Graph), Some(Where::Graph), Some(why)) = (&place.before, &place.after, refused) {
            place.after = Some(Where::Cpu(why));
        }
        place
    }

    /// All steps on the CPU.
    #[cfg(test)]
    pub(in crate::models) fn on_cpu(manifest: &crate::models::manifest::Manifest) -> Self {
        let place = |has_steps: bool| has_steps.then(|| Where::Cpu("said".into()));
        Self {
            before: place(!manifest.before.stages.is_empty()),
            after: place(!manifest.after.stages.is_empty()),
        }
    }

    /// All steps on the CPU, because the device did not load the model with them.
    pub(in crate::models) fn given_up(&mut self, wanted: &Wanted, error: BackendError) {
        let why = reason(wanted, error);
        let graphs = self.both_mut().filter(|place| **place == Where::Graph);
        graphs.for_each(|place| *place = Where::Cpu(why.clone()));
    }

    fn both_mut(&mut self) -> impl Iterator<Item = &mut Where> {
        [&mut self.before, &mut self.after].into_iter().flatten()
    }

    fn both(&self) -> impl Iterator<Item = (&'static str, &Where)> {
        let sides = [("before", &self.before), ("after", &self.after)];
        sides.into_iter().filter_map(|(side, place)| Some((side, place.as_ref()?)))
    }

    /// Whether steps are in the graph.
    pub(in crate::models) fn has_graph(&self) -> bool {
        self.both().any(|(_, place)| *place == Where::Graph)
    }

    /// Why steps that are to run on the device cannot.
    ///
    /// # Errors
    /// [`BackendError::Load`].
    pub(in crate::models) fn check(&self, wanted: &Wanted) -> Result<(), BackendError> {
        if wanted.steps != StepsWish::Device {
            return Ok(());
        }
        match self.both().find_map(|(side, place)| match place {
            Where::Cpu(why) => Some((side, why)),
            Where::Graph => None,
        }) {
            None => Ok(()),
            Some((side, why)) => Err(BackendError::Load(format!(
                "{}: `steps` is \"device\", and those {side} the model cannot be there: {why}",
                wanted.path.display()
            ))),
        }
    }

    /// What the backend is told.
    pub(in crate::models) fn options(&self, wanted: &Wanted) -> LoadOptions {
        let plain = wanted.options();
        let (Some(manifest), true) = (&wanted.manifest, self.has_graph()) else { return plain };
        let (mut around, mut signature) = (Around::default(), ModelInfo::default());
        if self.before == Some(Where::Graph) {
            around.before = manifest.before.clone();
            signature.inputs.clone_from(&manifest.described.inputs);
        }
        if self.after == Some(Where::Graph) {
            around.after = manifest.after.clone();
            signature.outputs.clone_from(&manifest.described.outputs);
        }
        // What was read can be written: a text that cannot be is one that the backend refuses.
        let text = around.to_text().unwrap_or_else(|error| error);
        let mut settings = plain.settings;
        settings.push((SETTING.into(), text));
        LoadOptions { format: with_steps(wanted), settings, signature, ..plain }
    }

    /// A sentence for each side that has steps.
    pub(in crate::models) fn said(&self) -> Vec<String> {
        let said = |(side, place)| match place {
            &Where::Graph => format!("steps {side} the model run on the device, in its graph"),
            Where::Cpu(why) => format!("steps {side} the model run on the CPU: {why}"),
        };
        self.both().map(said).collect()
    }
}

/// Why nobody asks the device.
fn beforehand(wanted: &Wanted, open: &OpenDevice) -> Option<String> {
    match wanted.steps {
        StepsWish::Host => return Some("`steps` is \"host\"".into()),
        StepsWish::Auto if open.kind == DeviceKind::Cpu => {
            return Some("the device's memory is the host's".into());
        }
        StepsWish::Auto if open.id.backend == UNTRIED => {
            return Some("not yet tried on CUDA; `steps = \"device\"` has them there".into());
        }
        StepsWish::Auto | StepsWish::Device => {}
    }
    match with_steps(wanted) {
        None => Some("nobody says what the format of the model is".into()),
        Some(format) if open.formats.contains(&format) => None,
        Some(_) => Some(format!("{} takes none with its models", open.id.backend)),
    }
}

fn with_steps(wanted: &Wanted) -> Option<String> {
    wanted.format.as_ref().map(|format| format!("{format}{WITH_STEPS}"))
}

/// What a backend says, without the path, which is known.
fn reason(wanted: &Wanted, error: BackendError) -> String {
    match error {
        BackendError::Load(text) => {
            let path = format!("{}: ", wanted.path.display());
            text.strip_prefix(&path).unwrap_or(&text).to_owned()
        }
        other => other.to_string(),
    }
}
