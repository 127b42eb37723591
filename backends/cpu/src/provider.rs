//! The CPU as ONNX Runtime's own provider for it has it.

use outrigger_backend::{BackendError, DeviceInfo, DeviceKind, LoadOptions, MachineMemory};
use outrigger_onnxruntime::{Memory, Plan, PlanError, Pool, Provider, Runtime};

use crate::affinity::Affinity;
use crate::{settings, trim};

pub(crate) struct Cpu {
    pub(crate) affinity: Option<Affinity>,
}

impl Provider for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn devices(&self, _runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        Ok(vec![DeviceInfo {
            name: "cpu:0".into(),
            kind: DeviceKind::Cpu,
            memory_total: MachineMemory::read().total,
            lanes: 0,
            resident: false,
        }])
    }

    fn plan(&self, _device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        Ok(Plan { pool: self.own_pool(options)?, ..Plan::default() })
    }

    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        let MachineMemory { total, free } = MachineMemory::read();
        Ok(Memory { total, free })
    }

    /// The processor, as far as ONNX Runtime's optimisations can depend on it: the layout of a convolution's weights does.
    fn circumstances(&self) -> String {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let wanted = ["vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features"];
        let lines = text.lines().take_while(|line| !line.trim().is_empty());
        let told = lines.filter(|line| wanted.iter().any(|wanted| line.starts_with(wanted)));
        format!("{}\n{}", std::env::consts::ARCH, told.collect::<Vec<_>>().join("\n"))
    }

    fn before_change(&self) {
        trim::before();
    }

    fn after_change(&self, runtime: &'static Runtime) {
        trim::after(runtime);
    }
}

impl Cpu {
    /// The pool that a model has for itself, if its settings ask for one.
    fn own_pool(&self, options: &LoadOptions) -> Result<Option<Pool>, settings::SettingsError> {
        let affinity = settings::read_model(&options.settings)?;
        let threads = match (options.intra_threads, &affinity) {
            (Some(threads), _) => threads,
            (None, Some(affinity)) => affinity.len().get(),
            (None, None) => return Ok(None),
        };
        let affinity = affinity.as_ref().or(self.affinity.as_ref());
        Ok(Some(pool(threads, affinity)))
    }
}

pub(crate) fn pool(threads: usize, affinity: Option<&Affinity>) -> Pool {
    Pool { threads, affinity: affinity.and_then(|affinity| affinity.for_pool(threads)) }
}
