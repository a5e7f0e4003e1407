//! Errors of each GPU, what its driver asks for, and what it is fit for.

use std::fmt;

use ebb_core::xid::{RecoveryAction, Verdict};

use super::{Subject, named, rows, subjects};
use crate::gpus::{GpuHealth, GpuReading};
use crate::metrics::write::{Labels, Writer};
use crate::source::gpu::{Gpu, Gpus, Slow};

pub(super) fn encode(page: &mut Writer, reading: &GpuReading) -> fmt::Result {
    if let Some(gpus) = &reading.gpus {
        errors(page, gpus)?;
    }
    let version = [("version", &*reading.policy_version)];
    page.gauges("ebb_gpu_xid_policy_info", "The table of XIDs behind ebb_gpu_health.", [(version, 1.0)])?;
    let rows: Vec<_> = reading.health.iter().map(|health| (Name::of(health), health)).collect();
    let xids: Vec<_> = rows
        .iter()
        .flat_map(|(name, health)| health.xids.iter().map(move |(xid, count)| (name, xid.to_string(), *count as f64)))
        .collect();
    let help = "Errors that NVIDIA's driver reported since the agent started, by the kernel's log and NVML.";
    page.counters(
        "ebb_gpu_xid_events",
        help,
        xids.iter().map(|(name, xid, count)| (name.labels_and("xid", xid), *count)),
    )?;
    let is = |verdict: Verdict, health: &GpuHealth| f64::from(u8::from(health.verdict.verdict == verdict));
    page.gauges(
        "ebb_gpu_health",
        "What the GPU is fit for: 1 for one verdict, 0 for the others.",
        rows.iter().flat_map(|(name, health)| {
            Verdict::ALL.map(|verdict| (name.labels_and("verdict", verdict.name()), is(verdict, health)))
        }),
    )
}

/// How a GPU is called that may be known to the kernel's log alone: then by its place on the bus.
struct Name<'a> {
    uuid: &'a str,
    index: String,
}

impl<'a> Name<'a> {
    fn of(health: &'a GpuHealth) -> Self {
        match &health.identity {
            Some(identity) => Self { uuid: &identity.uuid, index: identity.index.to_string() },
            None => Self { uuid: "", index: health.pci.to_string() },
        }
    }

    fn labels_and(&'a self, name: &'static str, value: &'a str) -> Labels<'a, 3> {
        [("gpu_uuid", self.uuid), ("gpu", &self.index), (name, value)]
    }
}

fn errors(page: &mut Writer, gpus: &Gpus) -> fmt::Result {
    let subjects = subjects(gpus);
    ecc(page, &subjects)?;
    let remapped = named(&subjects, "cause", |gpu| {
        let Slow { remapped_rows_corrected, remapped_rows_uncorrected, .. } = *gpu.slow;
        let causes = [("corrected", remapped_rows_corrected), ("uncorrected", remapped_rows_uncorrected)];
        causes.into_iter().filter_map(|(cause, count)| Some((cause, count? as f64)))
    });
    page.gauges("ebb_gpu_remapped_rows", "Rows of memory replaced by spare ones, by the errors they had.", remapped)?;
    let flag = |value: fn(&Slow) -> Option<bool>| {
        rows(&subjects, move |subject| value(&subject.whole()?.slow).map(|on| f64::from(u8::from(on))))
    };
    let help = "Whether a row of memory waits for the next reset to be replaced.";
    page.gauges("ebb_gpu_row_remap_pending", help, flag(|slow| slow.row_remap_pending))?;
    let help = "Whether a row of memory could not be replaced.";
    page.gauges("ebb_gpu_row_remap_failure", help, flag(|slow| slow.row_remap_failure))?;
    let nvlink =
        named(&subjects, "kind", |gpu| gpu.slow.nvlink_errors.iter().map(|(kind, count)| (*kind, *count as f64)));
    page.counters("ebb_gpu_nvlink_errors", "Errors on all NVLinks of the GPU.", nvlink)?;
    let replays = rows(&subjects, |subject| Some(subject.whole()?.slow.pcie_replays? as f64));
    page.counters("ebb_gpu_pcie_replays", "Packets that were sent again on the PCI bus.", replays)?;
    let recovery = named(&subjects, "action", |gpu: &Gpu| {
        let is = |asked: RecoveryAction| {
            RecoveryAction::ALL.map(|action| (action.name(), f64::from(u8::from(action == asked))))
        };
        gpu.slow.recovery.into_iter().flat_map(is)
    });
    page.gauges("ebb_gpu_recovery_action", "What the driver says the GPU needs: 1 for one action.", recovery)
}

fn ecc(page: &mut Writer, subjects: &[Subject<'_>]) -> fmt::Result {
    let kinds = |gpu: &Gpu| {
        let ecc = gpu.slow.ecc;
        [
            ("corrected", "volatile", ecc.volatile_corrected),
            ("uncorrected", "volatile", ecc.volatile_uncorrected),
            ("corrected", "aggregate", ecc.aggregate_corrected),
            ("uncorrected", "aggregate", ecc.aggregate_uncorrected),
        ]
    };
    let rows = subjects.iter().filter_map(|subject| Some((subject, subject.whole()?))).flat_map(|(subject, gpu)| {
        kinds(gpu).into_iter().filter_map(move |(kind, scope, count)| {
            let [uuid, index] = subject.labels();
            Some(([uuid, index, ("type", kind), ("scope", scope)], count? as f64))
        })
    });
    let help = "Errors in memory: volatile ones since the driver was loaded, aggregate ones since the GPU was made.";
    page.counters("ebb_gpu_ecc_errors", help, rows)
}
