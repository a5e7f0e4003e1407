//! One GPU's verdict, with what it rests on. What the driver says it needs outranks what the XIDs would mean.

use std::fmt;
use std::time::Duration;

use super::history::{Burst, History};
use super::policy::{Policy, Response};
use crate::time::Instant;

/// For how long an error that asks for nothing alone is worth a second look.
const WATCHED: Duration = Duration::from_secs(3600);

/// What to do about a GPU. In the order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Healthy,
    Watch,
    DrainThenReset,
    DrainThenReboot,
    DrainThenReplace,
}

impl Verdict {
    pub const ALL: [Self; 5] =
        [Self::Healthy, Self::Watch, Self::DrainThenReset, Self::DrainThenReboot, Self::DrainThenReplace];

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Watch => Response::Watch.name(),
            Self::DrainThenReset => Response::DrainThenReset.name(),
            Self::DrainThenReboot => Response::DrainThenReboot.name(),
            Self::DrainThenReplace => Response::DrainThenReplace.name(),
        }
    }

    /// Whether the node should be drained.
    pub fn drains(self) -> bool {
        self >= Self::DrainThenReset
    }
}

impl From<Response> for Verdict {
    fn from(response: Response) -> Self {
        match response {
            Response::Ignore | Response::Application => Self::Healthy,
            Response::Watch => Self::Watch,
            Response::DrainThenReset => Self::DrainThenReset,
            Response::DrainThenReboot => Self::DrainThenReboot,
            Response::DrainThenReplace => Self::DrainThenReplace,
        }
    }
}

/// What the driver says a GPU needs (NVML field 230, `nvmlDeviceGpuRecoveryAction_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryAction {
    None,
    GpuReset,
    NodeReboot,
    /// Traffic between GPUs must end before more can be said.
    DrainP2p,
    /// The GPU works, with less than all of it.
    DrainAndReset,
    /// Of several nodes' NVLinks. Its number, 5, meant a reset of the bus in some releases of NVML, so it decides
    /// nothing.
    RecoverImexDomain,
    BusReset,
    SystemReboot,
    /// Newer than this list.
    Other,
}

impl RecoveryAction {
    /// By NVML's numbers.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::GpuReset,
        Self::NodeReboot,
        Self::DrainP2p,
        Self::DrainAndReset,
        Self::RecoverImexDomain,
        Self::BusReset,
        Self::SystemReboot,
        Self::Other,
    ];

    pub fn from_nvml(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number).copied()).unwrap_or(Self::Other)
    }

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::GpuReset => "gpu_reset",
            Self::NodeReboot => "node_reboot",
            Self::DrainP2p => "drain_p2p",
            Self::DrainAndReset => "drain_and_reset",
            Self::RecoverImexDomain => "recover_imex_domain",
            Self::BusReset => "bus_reset",
            Self::SystemReboot => "system_reboot",
            Self::Other => "other",
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::None => Verdict::Healthy,
            Self::RecoverImexDomain | Self::Other => Verdict::Watch,
            Self::GpuReset | Self::DrainP2p | Self::DrainAndReset | Self::BusReset => Verdict::DrainThenReset,
            Self::NodeReboot | Self::SystemReboot => Verdict::DrainThenReboot,
        }
    }

    /// Whether it is known what is asked for, or that nothing is.
    fn decides(self) -> bool {
        !matches!(self, Self::RecoverImexDomain | Self::Other)
    }
}

/// What a verdict rests on beside the XIDs. `None`: the GPU does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// NVML knows the GPU and cannot reach it.
    pub lost: bool,
    /// And when it was read.
    pub recovery: Option<(Instant, RecoveryAction)>,
    /// A row of memory could not be replaced by a spare one.
    pub row_remap_failure: Option<bool>,
    /// A row waits for the next reset to be replaced.
    pub row_remap_pending: Option<bool>,
    /// Uncorrected ECC errors since the last reset.
    pub uncorrected_ecc: Option<u64>,
}

/// What made a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Recovery(RecoveryAction),
    Lost,
    RowRemapFailure,
    RowRemapPending,
    UncorrectedEcc(u64),
    /// The code that weighs most, and the burst it came in.
    Xid {
        xid: u32,
        burst: Burst,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recovery(action) => write!(f, "the driver asks for {}", action.name()),
            Self::Lost => f.write_str("the GPU has fallen off the bus"),
            Self::RowRemapFailure => f.write_str("a row of memory could not be remapped"),
            Self::RowRemapPending => f.write_str("a row of memory waits for a reset to be remapped"),
            Self::UncorrectedEcc(count) => write!(f, "uncorrected ECC errors since the last reset: {count}"),
            Self::Xid { xid, burst } => {
                write!(f, "XID {xid} at {}", burst.last)?;
                let others = burst.codes.iter().filter(|(code, _)| *code != xid);
                let with: Vec<_> = others.map(|(code, count)| format!("{code} ({count}x)")).collect();
                if with.is_empty() { Ok(()) } else { write!(f, ", with {}", with.join(", ")) }
            }
        }
    }
}

/// `reason` is missing only for a healthy GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuVerdict {
    pub verdict: Verdict,
    pub reason: Option<Reason>,
    pub figures: Figures,
}

impl GpuVerdict {
    pub fn of(now: Instant, policy: &Policy, history: &History, figures: Figures) -> Self {
        let mut worst = (Verdict::Healthy, None);
        let mut weigh = |verdict, reason| {
            if verdict > worst.0 {
                worst = (verdict, Some(reason));
            }
        };
        if figures.row_remap_failure == Some(true) {
            weigh(Verdict::DrainThenReplace, Reason::RowRemapFailure);
        }
        if let Some((_, action)) = figures.recovery {
            weigh(action.verdict(), Reason::Recovery(action));
        }
        if figures.lost {
            weigh(Verdict::DrainThenReboot, Reason::Lost);
        }
        for burst in history.bursts().rev() {
            let (verdict, xid) = of_burst(policy, burst, figures.recovery);
            if verdict.drains() || now.since(burst.last) <= WATCHED {
                weigh(verdict, Reason::Xid { xid, burst: burst.clone() });
            }
        }
        if figures.row_remap_pending == Some(true) {
            weigh(Verdict::Watch, Reason::RowRemapPending);
        }
        if let Some(count) = figures.uncorrected_ecc.filter(|count| *count > 0) {
            weigh(Verdict::Watch, Reason::UncorrectedEcc(count));
        }
        let (verdict, reason) = worst;
        Self { verdict, reason, figures }
    }
}

/// A burst weighs what its worst code does; no more than a look if the driver, asked since, told what it needs.
fn of_burst(policy: &Policy, burst: &Burst, recovery: Option<(Instant, RecoveryAction)>) -> (Verdict, u32) {
    let weights = burst.codes.keys().map(|xid| (Verdict::from(policy.response(*xid)), *xid));
    let (verdict, xid) = weights.max().unwrap_or((Verdict::Healthy, 0));
    let told_since = recovery.is_some_and(|(read, action)| action.decides() && read > burst.last);
    (if told_since { verdict.min(Verdict::Watch) } else { verdict }, xid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::history::Origin;
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000 + seconds * 1000)
    }

    fn verdict(now: u64, xids: &[(u64, u32)], figures: Figures) -> GpuVerdict {
        let mut history = History::default();
        for (second, xid) in xids {
            history.record(at(*second), *xid, Origin::KernelLog);
        }
        GpuVerdict::of(at(now), &Policy::default(), &history, figures)
    }

    fn recovery(read: u64, action: RecoveryAction) -> Figures {
        Figures { recovery: Some((at(read), action)), ..Figures::default() }
    }

    #[test]
    fn the_worst_of_a_burst_makes_the_verdict_and_says_so() {
        let found = verdict(10, &[(1, 45), (2, 48), (2, 45)], Figures::default());
        assert_eq!(found.verdict, Verdict::DrainThenReset);
        assert_eq!(found.reason.unwrap().to_string(), "XID 48 at 1970-01-01T00:16:42.000Z, with 45 (2x)");
        let check = |xid, expected| assert_eq!(verdict(10, &[(1, xid)], Figures::default()).verdict, expected, "{xid}");
        check(13, Verdict::Healthy);
        check(43, Verdict::Healthy);
        check(63, Verdict::Watch);
        check(79, Verdict::DrainThenReboot);
    }

    #[test]
    fn what_the_driver_says_afterwards_outranks_the_xids() {
        let check = |figures, expected| assert_eq!(verdict(60, &[(10, 48)], figures).verdict, expected, "{figures:?}");
        check(recovery(20, RecoveryAction::None), Verdict::Watch);
        check(recovery(20, RecoveryAction::NodeReboot), Verdict::DrainThenReboot);
        check(recovery(20, RecoveryAction::DrainP2p), Verdict::DrainThenReset);
        check(recovery(5, RecoveryAction::None), Verdict::DrainThenReset);
        check(recovery(20, RecoveryAction::Other), Verdict::DrainThenReset);
    }

    #[test]
    fn an_action_that_is_not_known_is_a_reason_to_look() {
        let check = |number, expected| {
            let figures = recovery(20, RecoveryAction::from_nvml(number));
            assert_eq!(verdict(60, &[], figures).verdict, expected, "{number}");
        };
        check(0, Verdict::Healthy);
        check(1, Verdict::DrainThenReset);
        check(2, Verdict::DrainThenReboot);
        check(4, Verdict::DrainThenReset);
        check(5, Verdict::Watch);
        check(6, Verdict::DrainThenReset);
        check(7, Verdict::DrainThenReboot);
        check(8, Verdict::Watch);
        check(u64::MAX, Verdict::Watch);
    }

    #[test]
    fn a_failed_remapping_asks_for_another_gpu_whatever_else_is_said() {
        let figures = Figures { row_remap_failure: Some(true), ..recovery(20, RecoveryAction::None) };
        let found = verdict(60, &[(10, 79)], figures);
        assert_eq!((found.verdict, found.reason), (Verdict::DrainThenReplace, Some(Reason::RowRemapFailure)));
    }

    #[test]
    fn a_lost_gpu_needs_a_reboot_even_without_an_xid() {
        let lost = Figures { lost: true, ..recovery(20, RecoveryAction::None) };
        assert_eq!(verdict(60, &[], lost).verdict, Verdict::DrainThenReboot);
    }

    #[test]
    fn memory_that_is_worn_is_watched() {
        let check = |figures, expected| assert_eq!(verdict(60, &[], figures).verdict, expected, "{figures:?}");
        check(Figures { row_remap_pending: Some(true), ..Figures::default() }, Verdict::Watch);
        check(Figures { uncorrected_ecc: Some(1), ..Figures::default() }, Verdict::Watch);
        check(
            Figures { uncorrected_ecc: Some(0), row_remap_pending: Some(false), ..Figures::default() },
            Verdict::Healthy,
        );
    }

    #[test]
    fn a_watched_error_is_forgiven_after_an_hour_and_a_fatal_one_never() {
        assert_eq!(verdict(3600, &[(0, 63)], Figures::default()).verdict, Verdict::Watch);
        assert_eq!(verdict(3601, &[(0, 63)], Figures::default()).verdict, Verdict::Healthy);
        assert_eq!(verdict(10_000_000, &[(0, 48)], Figures::default()).verdict, Verdict::DrainThenReset);
    }

    proptest! {
        #[test]
        fn more_evidence_never_makes_a_gpu_healthier(
            xids in prop::collection::vec((0..10_000_u64, 0..170_u32), 0..40),
            lost: bool,
            failure: bool,
        ) {
            let mut xids = xids;
            xids.sort_unstable();
            let figures = Figures { lost, row_remap_failure: Some(failure), ..Figures::default() };
            let mut least = Verdict::Healthy;
            for length in 0..=xids.len() {
                // Judged at one moment, so that nothing is forgiven in between.
                let found = verdict(10_000, &xids[..length], figures);
                prop_assert!(found.verdict >= least);
                prop_assert_eq!(found.reason.is_none(), found.verdict == Verdict::Healthy);
                least = found.verdict;
            }
        }
    }
}
