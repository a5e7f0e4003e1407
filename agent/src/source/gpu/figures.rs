//! The figures of all GPUs at one moment, and what they say of the node's use. `None`: the GPU or its driver does not
//! say, or could not be asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::classify::GpuUse;
use ebb_core::units::Permille;
use ebb_core::xid::RecoveryAction;

use super::identity::Identity;

/// Why clocks are held down, by NVML's bits (`nvmlClocksEventReasons`). Not among them: idle and clocks that somebody
/// set, which hold nothing back.
pub const THROTTLE_REASONS: [(u64, &str); 6] = [
    (0x04, "sw_power_cap"),
    (0x08, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "hw_power_brake"),
];

/// NVML's fields of errors on all NVLinks together, by what they count.
pub const NVLINK_ERRORS: [(u32, &str); 5] =
    [(38, "crc_flit"), (45, "crc_data"), (52, "replay"), (59, "recovery"), (160, "ecc_data")];

#[derive(Clone, Debug, Default)]
pub struct Gpus {
    pub driver_version: String,
    pub all: Vec<Gpu>,
}

#[derive(Clone, Debug)]
pub struct Gpu {
    pub identity: Arc<Identity>,
    /// Fallen off the bus, or in need of a reset before it says anything.
    pub lost: bool,
    pub now: Now,
    /// Read less often.
    pub slow: Arc<Slow>,
    /// `None`: not in MIG mode.
    pub mig: Option<Vec<MigInstance>>,
    /// `None` in MIG mode as well: instances have their own.
    pub processes: Option<Vec<GpuProcess>>,
}

/// What changes by the second.
#[derive(Clone, Debug, Default)]
pub struct Now {
    pub busy: Option<Busy>,
    /// Share of time in which memory was read or written.
    pub memory_busy: Option<Permille>,
    pub memory: Option<GpuMemory>,
    pub power_milliwatts: Option<u32>,
    /// Since the driver was loaded.
    pub energy_millijoules: Option<u64>,
    pub sm_clock_megahertz: Option<u32>,
    pub memory_clock_megahertz: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub memory_temperature_celsius: Option<u32>,
    /// Bits of [`THROTTLE_REASONS`].
    pub throttle_reasons: Option<u64>,
    pub activity: Option<Activity>,
}

/// Share of time with at least one kernel running (NVML, `nvmlUtilization_t`), by the driver's samples since the
/// reading before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    pub mean: Permille,
    pub max: Permille,
}

/// In bytes. What is reserved for the driver is not part of `used`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    pub used: u64,
    pub reserved: u64,
    pub total: u64,
}

/// What GPM measured between two readings; Hopper and newer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    /// Share of time in which anything ran.
    pub graphics: Option<Permille>,
    /// Share of time in which an SM had work, over all SMs.
    pub sm_active: Option<Permille>,
    /// Warps that were resident, of those that could be.
    pub sm_occupancy: Option<Permille>,
    pub tensor_active: Option<Permille>,
    pub dram_active: Option<Permille>,
    pub pcie_sent_bytes_per_second: Option<f64>,
    pub pcie_received_bytes_per_second: Option<f64>,
}

impl Activity {
    /// The highest of the figures that say whether anything ran.
    fn any(&self) -> Option<Permille> {
        self.graphics.max(self.sm_active)
    }
}

/// What changes by the hour, or costs more to ask.
#[derive(Clone, Debug, Default)]
pub struct Slow {
    pub read: Option<Monotonic>,
    pub encoder_busy: Option<Permille>,
    pub decoder_busy: Option<Permille>,
    pub ecc: Ecc,
    /// Rows of memory replaced by spare ones, after errors that were corrected and that were not.
    pub remapped_rows_corrected: Option<u64>,
    pub remapped_rows_uncorrected: Option<u64>,
    pub row_remap_pending: Option<bool>,
    pub row_remap_failure: Option<bool>,
    /// By the names of [`NVLINK_ERRORS`].
    pub nvlink_errors: BTreeMap<&'static str, u64>,
    pub pcie_replays: Option<u64>,
    pub recovery: Option<RecoveryAction>,
    /// Time that clocks were held down, by the reason.
    pub throttled: BTreeMap<&'static str, Duration>,
}

/// Errors in memory. Volatile ones since the driver was loaded, aggregate ones since the GPU was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ecc {
    pub volatile_corrected: Option<u64>,
    pub volatile_uncorrected: Option<u64>,
    pub aggregate_corrected: Option<u64>,
    pub aggregate_uncorrected: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct MigInstance {
    pub uuid: Arc<str>,
    /// As in `1g.10gb`.
    pub profile: Arc<str>,
    pub gpu_instance: Option<u32>,
    pub memory: Option<GpuMemory>,
    pub activity: Option<Activity>,
    pub processes: Option<Vec<GpuProcess>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    pub pid: u32,
    pub memory: Option<u64>,
    /// Share of the SMs' time since the reading before. Unknown in MIG mode.
    pub sm: Option<Permille>,
}

impl Gpu {
    /// Those that hold an instance too.
    pub fn all_processes(&self) -> impl Iterator<Item = &GpuProcess> {
        let of_instances = self.mig.iter().flatten().flat_map(|instance| instance.processes.iter().flatten());
        self.processes.iter().flatten().chain(of_instances)
    }

    /// The highest share of time in which something ran.
    pub fn busy(&self) -> Option<Permille> {
        if self.lost {
            return None;
        }
        match &self.mig {
            None => self.now.busy.map(|busy| busy.max),
            // Without instances nothing can run.
            Some(instances) => instances
                .iter()
                .map(MigInstance::busy)
                .try_fold(Permille::ZERO, |highest, busy| busy.map(|busy| highest.max(busy))),
        }
    }
}

impl MigInstance {
    /// NVML has no utilization of an instance. GPM has; without it, only that nobody holds the instance says anything.
    pub fn busy(&self) -> Option<Permille> {
        let unheld = || self.processes.as_ref().is_some_and(Vec::is_empty).then_some(Permille::ZERO);
        self.activity.and_then(|activity| activity.any()).or_else(unheld)
    }
}

impl Gpus {
    /// The busiest GPU's, or unknown if that of one of them is: it might be the busiest. `on_bus`: how many there
    /// should be.
    pub fn node_use(&self, on_bus: usize) -> GpuUse {
        if self.all.is_empty() && on_bus == 0 {
            return GpuUse::Absent;
        }
        if self.all.len() < on_bus {
            return GpuUse::Unknown;
        }
        let busiest =
            self.all.iter().map(Gpu::busy).try_fold(Permille::ZERO, |highest, busy| busy.map(|busy| highest.max(busy)));
        busiest.map_or(GpuUse::Unknown, GpuUse::Busy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permille(raw: u16) -> Permille {
        Permille::new(raw).unwrap()
    }

    fn gpu(max: Option<u16>) -> Gpu {
        let identity = Identity { uuid: "GPU-0".into(), index: 0, model: "Test".into(), pci: None, minor: None };
        let busy = max.map(|max| Busy { mean: Permille::ZERO, max: permille(max) });
        Gpu {
            identity: Arc::new(identity),
            lost: false,
            now: Now { busy, ..Now::default() },
            slow: Arc::default(),
            mig: None,
            processes: None,
        }
    }

    fn instance(activity: Option<u16>, processes: Option<usize>) -> MigInstance {
        let process = GpuProcess { pid: 1, memory: None, sm: None };
        MigInstance {
            uuid: "MIG-0".into(),
            profile: "1g.10gb".into(),
            gpu_instance: Some(1),
            memory: None,
            activity: activity.map(|sm| Activity { sm_active: Some(permille(sm)), ..Activity::default() }),
            processes: processes.map(|count| vec![process; count]),
        }
    }

    fn check(all: Vec<Gpu>, on_bus: usize, expected: GpuUse) {
        let gpus = Gpus { driver_version: String::new(), all };
        assert_eq!(gpus.node_use(on_bus), expected, "{:?}", gpus.all);
    }

    #[test]
    fn the_busiest_gpu_counts_and_one_that_is_not_seen_makes_the_node_unknown() {
        check(vec![], 0, GpuUse::Absent);
        check(vec![], 1, GpuUse::Unknown);
        check(vec![gpu(Some(20)), gpu(Some(970))], 2, GpuUse::Busy(permille(970)));
        check(vec![gpu(Some(0)), gpu(None)], 2, GpuUse::Unknown);
        check(vec![gpu(Some(0))], 2, GpuUse::Unknown);
        check(vec![gpu(Some(0)), Gpu { lost: true, ..gpu(Some(0)) }], 2, GpuUse::Unknown);
    }

    proptest! {
        #[test]
        fn unknown_is_never_idle(levels in prop::collection::vec(prop::option::of(0..=1000_u16), 0..10), on_bus in 0..10_usize) {
            let all: Vec<_> = levels.iter().map(|level| gpu(*level)).collect();
            let found = Gpus { driver_version: String::new(), all }.node_use(on_bus);
            let all_known = levels.len() >= on_bus && levels.iter().all(Option::is_some);
            let expected = match levels.iter().flatten().max() {
                None if levels.is_empty() && on_bus == 0 => GpuUse::Absent,
                Some(max) if all_known => GpuUse::Busy(permille(*max)),
                _ => GpuUse::Unknown,
            };
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_mig_instance_is_idle_only_by_gpm_or_if_nobody_holds_it() {
        let mig = |instances| vec![Gpu { mig: Some(instances), ..gpu(None) }];
        check(mig(vec![]), 1, GpuUse::Busy(Permille::ZERO));
        check(mig(vec![instance(Some(300), Some(1)), instance(Some(0), Some(1))]), 1, GpuUse::Busy(permille(300)));
        check(mig(vec![instance(None, Some(0))]), 1, GpuUse::Busy(Permille::ZERO));
        check(mig(vec![instance(None, Some(1))]), 1, GpuUse::Unknown);
        check(mig(vec![instance(None, None)]), 1, GpuUse::Unknown);
        check(mig(vec![instance(Some(900), Some(1)), instance(None, Some(1))]), 1, GpuUse::Unknown);
    }
}
