//! GPM: what the SMs, the tensor cores and the memory did between two samples. Hopper and newer.

use ebb_core::units::Permille;
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};

use super::figures::Activity;

const METRICS: [GpmMetricId; 7] = [
    GpmMetricId::GraphicsUtil,
    GpmMetricId::SmUtil,
    GpmMetricId::SmOccupancy,
    GpmMetricId::AnyTensorUtil,
    GpmMetricId::DramBwUtil,
    GpmMetricId::PcieTxPerSec,
    GpmMetricId::PcieRxPerSec,
];

/// `nvml.h`: PCIe traffic is in MiB per second.
const MIB: f64 = 1_048_576.0;

/// The latest sample of one GPU or instance.
#[derive(Debug, Default)]
pub(super) struct Gpm<'nvml>(Option<GpmSample<'nvml>>);

impl<'nvml> Gpm<'nvml> {
    /// What happened since the sample before; nothing the first time.
    pub(super) fn since(&mut self, nvml: &'nvml Nvml, now: GpmSample<'nvml>) -> Result<Option<Activity>, NvmlError> {
        let before = self.0.take();
        let activity = match &before {
            Some(before) => Some(activity(nvml, before, &now)?),
            None => None,
        };
        self.0 = Some(now);
        Ok(activity)
    }

    /// What comes next is not compared with what was before.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

fn activity<'nvml>(
    nvml: &'nvml Nvml,
    before: &GpmSample<'nvml>,
    now: &GpmSample<'nvml>,
) -> Result<Activity, NvmlError> {
    let values = gpm_metrics_get(nvml, before, now, &METRICS)?;
    let values: Vec<_> = values.into_iter().map(|metric| metric.ok().map(|metric| metric.value)).collect();
    let value = |at: usize| values.get(at).copied().flatten().filter(|value| value.is_finite());
    let share = |at| value(at).and_then(|percent| Permille::from_ratio(percent, 100.0));
    let bytes = |at| value(at).map(|mib| mib * MIB);
    Ok(Activity {
        graphics: share(0),
        sm_active: share(1),
        sm_occupancy: share(2),
        tensor_active: share(3),
        dram_active: share(4),
        pcie_sent_bytes_per_second: bytes(5),
        pcie_received_bytes_per_second: bytes(6),
    })
}
