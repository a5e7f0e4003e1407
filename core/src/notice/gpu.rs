//! GPUs that need a reset, a restart or to be replaced, none of which can be had while anything runs on the node.

use std::time::Duration;

use super::Notice;
use crate::intent::Trigger;
use crate::time::Instant;
use crate::xid::{GpuVerdict, RecoveryAction};

/// How long the drain may take. Nothing takes such a node away by itself, and what runs on its other GPUs works: time
/// for a checkpoint. Ours.
const GPU_RECOVERY: Duration = Duration::from_secs(3600);

/// The notices in the verdicts on a node's GPUs, by what each GPU is called. `None`: not known now. A GPU that asks for
/// nothing is well only if its driver says so: of errors in a log, an agent that was started anew may know nothing.
pub fn of_gpus<'a>(gpus: impl IntoIterator<Item = (String, &'a GpuVerdict)>, now: Instant) -> Option<Vec<Notice>> {
    let (mut notices, mut all_well, mut any) = (Vec::new(), true, false);
    for (gpu, found) in gpus {
        any = true;
        if found.verdict.drains() {
            let because = found.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            notices.push(Notice {
                deadline: now + GPU_RECOVERY,
                trigger: Trigger::GpuRecovery,
                reason: format!("GPU {gpu}: {}{because}", found.verdict.name()),
                // It stays the same drain if the GPU comes to need more than it did.
                id: format!("gpu-{gpu}"),
            });
        }
        all_well &= matches!(found.figures.recovery, Some((_, RecoveryAction::None)));
    }
    (!notices.is_empty() || any && all_well).then_some(notices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xid::{Figures, History, Origin, Policy};

    fn now() -> Instant {
        Instant::from_millis(1_000_000)
    }

    fn verdict(xid: Option<u32>, recovery: Option<RecoveryAction>) -> GpuVerdict {
        let mut history = History::default();
        if let Some(xid) = xid {
            history.record(now(), xid, Origin::KernelLog);
        }
        let figures = Figures { recovery: recovery.map(|action| (now(), action)), ..Figures::default() };
        GpuVerdict::of(now(), &Policy::default(), &history, figures)
    }

    /// By id; `None`: not known.
    fn ids(verdicts: &[GpuVerdict]) -> Option<Vec<String>> {
        let gpus = verdicts.iter().enumerate().map(|(index, verdict)| (index.to_string(), verdict));
        Some(of_gpus(gpus, now())?.into_iter().map(|notice| notice.id).collect())
    }

    #[test]
    fn a_gpu_that_needs_the_node_empty_says_why() {
        let found = verdict(None, Some(RecoveryAction::NodeReboot));
        let [notice] = &of_gpus([("GPU-1".to_owned(), &found)], now()).unwrap()[..] else { panic!("not one") };
        assert_eq!(notice.reason, "GPU GPU-1: drain_then_reboot: the driver asks for node_reboot");
        assert_eq!((notice.trigger, notice.deadline), (Trigger::GpuRecovery, now() + GPU_RECOVERY));
    }

    #[test]
    fn that_nothing_is_needed_is_the_drivers_to_say() {
        let well = verdict(None, Some(RecoveryAction::None));
        let silent = verdict(None, None);
        let unclear = verdict(None, Some(RecoveryAction::Other));
        let broken = verdict(Some(48), None);
        assert_eq!(ids(&[]), None);
        assert_eq!(ids(&[well.clone(), well.clone()]), Some(vec![]));
        assert_eq!(ids(&[well.clone(), silent]), None);
        assert_eq!(ids(&[well.clone(), unclear]), None);
        assert_eq!(ids(&[well.clone(), broken]), Some(vec!["gpu-1".to_owned()]));
        // Told since that nothing is needed.
        let figures =
            Figures { recovery: Some((now() + Duration::from_secs(1), RecoveryAction::None)), ..Figures::default() };
        let mut history = History::default();
        history.record(now(), 48, Origin::KernelLog);
        assert_eq!(ids(&[GpuVerdict::of(now(), &Policy::default(), &history, figures)]), Some(vec![]));
    }
}
