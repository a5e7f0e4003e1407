//! MIG's instances: parts of a GPU that are GPUs to those who use them. NVML knows far less of them.

use std::sync::Arc;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};

use super::answers::Answers;
use super::figures::{GpuMemory, MigInstance};
use super::gpm::Gpm;
use super::processes::processes;

/// `NVML_DEVICE_MIG_ENABLE`.
const ENABLED: u32 = 1;
const MODE: &str = "MIG mode";
const INSTANCES: &str = "MIG instances";

#[derive(Debug)]
pub(super) struct InstanceReader<'nvml> {
    device: Device<'nvml>,
    uuid: Arc<str>,
    profile: Arc<str>,
    gpu_instance: Option<u32>,
    answers: Answers,
    gpm: Gpm<'nvml>,
}

/// The GPU's instances as they are now; those that stayed go on where they were. `None`: not in MIG mode, or no answer,
/// which `answers` tells apart.
pub(super) fn list<'nvml>(
    nvml: &'nvml Nvml,
    device: &Device<'nvml>,
    answers: &mut Answers,
    before: Option<Vec<InstanceReader<'nvml>>>,
) -> Option<Vec<InstanceReader<'nvml>>> {
    answers.ask(MODE, || device.mig_mode()).filter(|mode| mode.current == ENABLED)?;
    let most = answers.ask(INSTANCES, || device.mig_device_count())?;
    let mut before = before.unwrap_or_default();
    let mut all = Vec::new();
    for number in 0..most {
        // There may be gaps.
        let found = answers.ask(INSTANCES, || match device.mig_device_by_index(number) {
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => Ok(None),
            instance => instance.map(Some),
        });
        let Some(Some(instance)) = found else { continue };
        let Some(uuid) = answers.ask(INSTANCES, || instance.uuid()) else { continue };
        match before.iter().position(|known| *known.uuid == *uuid) {
            Some(known) => all.push(before.swap_remove(known)),
            None => all.push(InstanceReader::new(nvml, instance, uuid, answers)),
        }
    }
    Some(all)
}

impl<'nvml> InstanceReader<'nvml> {
    fn new(nvml: &'nvml Nvml, device: Device<'nvml>, uuid: String, parent: &mut Answers) -> Self {
        let name = parent.ask(INSTANCES, || device.name()).unwrap_or_default();
        // As in `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
        let profile = name.rsplit_once(" MIG ").map_or("", |(_, profile)| profile.trim());
        let gpu_instance = parent.ask("GPU instances", || gpu_instance(nvml, &device));
        Self {
            uuid: uuid.into(),
            profile: profile.into(),
            gpu_instance,
            answers: Answers::of(parent.index()),
            gpm: Gpm::default(),
            device,
        }
    }

    /// `with_gpm`: whether the GPU has it.
    pub(super) fn read(
        &mut self,
        nvml: &'nvml Nvml,
        parent: &Device<'nvml>,
        with_gpm: bool,
        all_shown: bool,
    ) -> MigInstance {
        let Self { device, answers, gpm, .. } = self;
        answers.begin();
        let memory = answers.ask("memory", || device.memory_info()).map(GpuMemory::from);
        let sample = self.gpu_instance.filter(|_| with_gpm);
        let activity = sample.and_then(|instance| {
            answers.ask("activity", || {
                let sample = parent.gpm_mig_sample(instance);
                sample.and_then(|sample| gpm.since(nvml, sample)).inspect_err(|_| gpm.forget())
            })
        });
        MigInstance {
            uuid: Arc::clone(&self.uuid),
            profile: Arc::clone(&self.profile),
            gpu_instance: self.gpu_instance,
            memory,
            activity: activity.flatten(),
            processes: processes(device, answers, all_shown),
        }
    }

    pub(super) fn answers(&mut self) -> &mut Answers {
        &mut self.answers
    }
}

/// The wrapper lacks this call.
fn gpu_instance(nvml: &Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let mut id = 0;
    // SAFETY: the handle is of this library, which is loaded as long as `nvml`; `id` outlives the call.
    nvml_try(unsafe { call(device.handle(), &mut id) })?;
    Ok(id)
}
