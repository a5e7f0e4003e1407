//! Who uses each GPU: processes, added up by the pod and container they belong to. What time slices hide from the
//! GPU's own figures shows here.

use std::collections::BTreeMap;
use std::fmt;

use super::Subject;
use crate::gpus::GpuReading;
use crate::metrics::write::{Labels, Writer};
use crate::pods::PodNames;
use crate::source::gpu::GpuProcess;
use crate::workload::User;

/// `None` as soon as one of the processes does not say.
#[derive(Clone, Copy)]
struct Use {
    sm: Option<f64>,
    memory: Option<f64>,
}

pub(super) fn encode(
    page: &mut Writer,
    reading: &GpuReading,
    names: &PodNames,
    subjects: &[Subject<'_>],
) -> fmt::Result {
    let uses: Vec<_> = subjects.iter().map(|subject| (subject, uses(reading, names, subject))).collect();
    let rows = |value: fn(&Use) -> Option<f64>| {
        uses.iter().flat_map(move |(subject, uses)| {
            uses.iter().filter_map(move |(user, used)| Some((labels(subject, user), value(used)?)))
        })
    };
    let help = "Share of the SMs' time that the container's processes used since the sample before.";
    page.gauges("ebb_gpu_process_sm_ratio", help, rows(|used| used.sm))?;
    let help = "GPU memory that the container's processes hold.";
    page.gauges("ebb_gpu_process_memory_bytes", help, rows(|used| used.memory))
}

fn labels<'a>(subject: &'a Subject<'a>, user: &User<'a>) -> Labels<'a, 6> {
    let [uuid, index] = subject.labels();
    let User { namespace, pod, container, uid } = *user;
    [uuid, index, ("namespace", namespace), ("pod", pod), ("container", container), ("uid", uid)]
}

fn uses<'a>(reading: &'a GpuReading, names: &'a PodNames, subject: &Subject<'a>) -> BTreeMap<User<'a>, Use> {
    let processes: &[GpuProcess] = match subject.instance {
        Some(instance) => instance.processes.as_deref().unwrap_or_default(),
        None => subject.gpu.processes.as_deref().unwrap_or_default(),
    };
    let mut uses: BTreeMap<User<'a>, Use> = BTreeMap::new();
    for process in processes {
        let user = reading.owners.get(&process.pid).map(|owner| User::of(owner, names)).unwrap_or_default();
        let sum = |so_far: Option<f64>, more: Option<f64>| Some(so_far? + more?);
        let so_far = uses.entry(user).or_insert(Use { sm: Some(0.0), memory: Some(0.0) });
        so_far.sm = sum(so_far.sm, process.sm.map(|share| share.ratio()));
        so_far.memory = sum(so_far.memory, process.memory.map(|bytes| bytes as f64));
    }
    uses
}
