//! The processes that hold a GPU, and each one's share of it: what tells pods apart that share one in time slices.

use std::collections::BTreeMap;
use std::path::Path;

use ebb_core::units::Permille;
use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};

use super::answers::Answers;
use super::figures::GpuProcess;

/// The first PID namespace's number (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

const COMPUTE: &str = "compute processes";
const GRAPHICS: &str = "graphics processes";
const SHARES: &str = "processes' shares";

/// Whether the driver shows us all processes: it leaves out those of other PID namespaces, unless we are in the first.
pub(super) fn all_are_shown(proc_root: &Path) -> bool {
    std::fs::read_link(proc_root.join("self/ns/pid")).is_ok_and(|name| name == Path::new(FIRST_PID_NAMESPACE))
}

/// `None`: unknown. An empty list says something only if all would be shown.
pub(super) fn processes(device: &Device<'_>, answers: &mut Answers, all_shown: bool) -> Option<Vec<GpuProcess>> {
    let compute = answers.ask(COMPUTE, || device.running_compute_processes())?;
    let graphics = match answers.ask(GRAPHICS, || device.running_graphics_processes()) {
        None if answers.supports(GRAPHICS) => return None,
        graphics => graphics.unwrap_or_default(),
    };
    let mut memory: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in compute.into_iter().chain(graphics) {
        let used = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process that computes and draws is in both lists, each time with all that it holds.
        let known = memory.entry(pid).or_default();
        *known = (*known).max(used);
    }
    let processes: Vec<_> = memory.into_iter().map(|(pid, memory)| GpuProcess { pid, memory, sm: None }).collect();
    (all_shown || !processes.is_empty()).then_some(processes)
}

/// Where the driver's samples of one GPU's processes were read up to.
#[derive(Debug, Default)]
pub(super) struct Shares {
    last_seen: u64,
    began: bool,
}

impl Shares {
    /// Fills in each process's share since the call before.
    pub(super) fn fill(&mut self, device: &Device<'_>, answers: &mut Answers, processes: &mut [GpuProcess]) {
        let since = self.last_seen;
        let samples = answers.ask(SHARES, || match device.process_utilization_stats(since) {
            // Nobody did anything since.
            Err(NvmlError::NotFound) => Ok(Vec::new()),
            samples => samples,
        });
        let Some(mut samples) = samples else { return };
        samples.retain(|sample| sample.timestamp > since);
        self.last_seen = samples.iter().map(|sample| sample.timestamp).max().unwrap_or(since);
        // What comes first is of a time before we looked.
        if std::mem::replace(&mut self.began, true) {
            for process in processes {
                process.sm = share(process.pid, &samples);
            }
        }
    }
}

/// The mean over the process's samples; it has none for when it did nothing.
fn share(pid: u32, samples: &[ProcessUtilizationSample]) -> Option<Permille> {
    let own = || samples.iter().filter(|sample| sample.pid == pid).map(|sample| f64::from(sample.sm_util.min(100)));
    let count = own().count();
    if count == 0 { Some(Permille::ZERO) } else { Permille::from_ratio(own().sum(), 100.0 * count as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_the_mean_of_a_process_s_own_samples() {
        let sample = |pid, sm_util| ProcessUtilizationSample {
            pid,
            timestamp: 1,
            sm_util,
            mem_util: 0,
            enc_util: 0,
            dec_util: 0,
        };
        let samples = [sample(1, 70), sample(2, 20), sample(1, 30), sample(3, 4_000_000_000)];
        let check = |pid, expected| assert_eq!(share(pid, &samples), Permille::new(expected), "{pid}");
        check(1, 500);
        check(2, 200);
        check(3, 1000);
        check(4, 0);
    }

    #[test]
    fn the_first_pid_namespace_is_known_by_its_number() {
        let root = tempfile::tempdir().unwrap();
        assert!(!all_are_shown(root.path()));
        std::fs::create_dir_all(root.path().join("self/ns")).unwrap();
        std::os::unix::fs::symlink("pid:[4026532281]", root.path().join("self/ns/pid")).unwrap();
        assert!(!all_are_shown(root.path()));
        std::fs::remove_file(root.path().join("self/ns/pid")).unwrap();
        std::os::unix::fs::symlink(FIRST_PID_NAMESPACE, root.path().join("self/ns/pid")).unwrap();
        assert!(all_are_shown(root.path()));
    }
}
