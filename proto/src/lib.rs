//! The gRPC stream between agent and coordinator, and the way between its messages and the core's types.
//! A message that breaks the protocol is refused here; behind this no report needs checking.
//! Beside it what the agent asks of the kubelet, as bare messages, and what the coordinator asks of Ray.

pub mod ray;

mod usage;

use std::time::Duration;

use ebb_core::classify::{self, Band, Class, GpuUse, IdlePolicy, Missing, Signal};
use ebb_core::report::Report;
use ebb_core::time::Instant;
use ebb_core::units::Permille;

/// Generated from `ebb/v1/reports.proto`.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("ebb.v1");
}

/// Generated from `kubelet/podresources/v1/api.proto`: the kubelet's word on who holds which device.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod podresources {
    tonic::include_proto!("v1");
}

/// The audience of the tokens that agents show to the coordinator, so that one who steals such a token cannot use it
/// on the API server, nor the other way round.
pub const TOKEN_AUDIENCE: &str = "ebb-coordinator";

/// Where a node's drain asks about Ray, beside the reports and with the same token: a POST as for any other hook.
pub const RAY_HOOK: &str = "/hooks/ray";

/// A message that the protocol does not allow.
#[derive(Debug, thiserror::Error)]
#[error("the message breaks the protocol: {0}")]
pub struct Invalid(&'static str);

impl From<&Report> for v1::Report {
    fn from(report: &Report) -> Self {
        let class = match report.class {
            Class::Busy { since, signal } => v1::report::Class::Busy(v1::Busy {
                since_ms: since.as_millis(),
                signal: v1::Signal::from(signal).into(),
            }),
            Class::Idle { since } => v1::report::Class::Idle(v1::Idle { since_ms: since.as_millis() }),
            Class::Unknown { since, missing } => v1::report::Class::Unknown(v1::Unknown {
                since_ms: since.as_millis(),
                missing: match missing {
                    Missing::History => None,
                    Missing::Initialization => Some(v1::unknown::Missing::Initialization(v1::Initialization {})),
                    Missing::Signal(signal) => Some(v1::unknown::Missing::Signal(v1::Signal::from(signal).into())),
                },
            }),
        };
        let use_ = &report.utilization;
        Self {
            node: report.node.clone(),
            node_uid: report.node_uid.clone(),
            agent_start_ms: report.agent_start.as_millis(),
            sequence: report.sequence,
            sampled_at_ms: report.sampled_at.as_millis(),
            class: Some(class),
            utilization: Some(v1::Utilization {
                cpu: raw(use_.cpu),
                cpu_steal: raw(use_.cpu_steal),
                run_queue: raw(use_.run_queue),
                memory: raw(use_.memory),
                memory_pressure: raw(use_.memory_pressure),
                has_gpu: use_.gpu != GpuUse::Absent,
                gpu: match use_.gpu {
                    GpuUse::Busy(busy) => raw(Some(busy)),
                    GpuUse::Absent | GpuUse::Unknown => None,
                },
                newest_workload_seconds: use_.newest_workload_seconds,
            }),
            gpu_waste_since_ms: report.gpu_waste.map(Instant::as_millis),
            usage: None,
        }
    }
}

impl TryFrom<v1::Report> for Report {
    type Error = Invalid;

    fn try_from(message: v1::Report) -> Result<Self, Invalid> {
        if message.node.is_empty() || message.node_uid.is_empty() {
            return Err(Invalid("a report without node name or UID"));
        }
        let sampled_at = Instant::from_millis(message.sampled_at_ms);
        let class = match message.class.ok_or(Invalid("a report without class"))? {
            v1::report::Class::Busy(busy) => {
                Class::Busy { since: Instant::from_millis(busy.since_ms), signal: signal(busy.signal)? }
            }
            v1::report::Class::Idle(idle) => Class::Idle { since: Instant::from_millis(idle.since_ms) },
            v1::report::Class::Unknown(unknown) => Class::Unknown {
                since: Instant::from_millis(unknown.since_ms),
                missing: match unknown.missing {
                    None => Missing::History,
                    Some(v1::unknown::Missing::Initialization(_)) => Missing::Initialization,
                    Some(v1::unknown::Missing::Signal(raw)) => Missing::Signal(signal(raw)?),
                },
            },
        };
        if class.since() > sampled_at {
            return Err(Invalid("a class that began after its sample"));
        }
        let gpu_waste = message.gpu_waste_since_ms.map(Instant::from_millis);
        if gpu_waste.is_some_and(|since| since > sampled_at) {
            return Err(Invalid("waste that began after its sample"));
        }
        let utilization = message.utilization.ok_or(Invalid("a report without utilization"))?;
        Ok(Self {
            node: message.node,
            node_uid: message.node_uid,
            agent_start: Instant::from_millis(message.agent_start_ms),
            sequence: message.sequence,
            sampled_at,
            class,
            utilization: classify::Utilization {
                cpu: utilization.cpu.map(share).transpose()?,
                cpu_steal: utilization.cpu_steal.map(share).transpose()?,
                run_queue: utilization.run_queue.map(share).transpose()?,
                memory: utilization.memory.map(share).transpose()?,
                memory_pressure: utilization.memory_pressure.map(share).transpose()?,
                gpu: match (utilization.has_gpu, utilization.gpu) {
                    (false, None) => GpuUse::Absent,
                    (false, Some(_)) => return Err(Invalid("GPU use on a node without GPU")),
                    (true, None) => GpuUse::Unknown,
                    (true, Some(busy)) => GpuUse::Busy(share(busy)?),
                },
                newest_workload_seconds: utilization.newest_workload_seconds,
            },
            gpu_waste,
        })
    }
}

impl From<&IdlePolicy> for v1::Settings {
    fn from(policy: &IdlePolicy) -> Self {
        let band = |signal| {
            let band = policy.band(signal);
            Some(v1::Band { idle_below: band.idle_below.get().into(), busy_from: band.busy_from.get().into() })
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            window_ms: millis(policy.window),
            initialization_period_ms: millis(policy.initialization_period),
            cpu: band(Signal::Cpu),
            cpu_steal: band(Signal::CpuSteal),
            gpu: band(Signal::Gpu),
            memory_pressure: band(Signal::MemoryPressure),
            run_queue: band(Signal::RunQueue),
            usage: false,
            signals: false,
            ray: false,
        }
    }
}

impl TryFrom<v1::Settings> for IdlePolicy {
    type Error = Invalid;

    fn try_from(settings: v1::Settings) -> Result<Self, Invalid> {
        let band = |band: Option<v1::Band>| {
            let band = band.ok_or(Invalid("settings without a band"))?;
            let band = Band { idle_below: share(band.idle_below)?, busy_from: share(band.busy_from)? };
            if band.idle_below > band.busy_from {
                return Err(Invalid("a band that begins above its end"));
            }
            Ok(band)
        };
        Ok(Self {
            window: Duration::from_millis(settings.window_ms),
            initialization_period: Duration::from_millis(settings.initialization_period_ms),
            cpu: band(settings.cpu)?,
            cpu_steal: band(settings.cpu_steal)?,
            gpu: band(settings.gpu)?,
            memory_pressure: band(settings.memory_pressure)?,
            run_queue: band(settings.run_queue)?,
        })
    }
}

impl From<Signal> for v1::Signal {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Cpu => Self::Cpu,
            Signal::CpuSteal => Self::CpuSteal,
            Signal::Gpu => Self::Gpu,
            Signal::MemoryPressure => Self::MemoryPressure,
            Signal::RunQueue => Self::RunQueue,
        }
    }
}

fn signal(raw: i32) -> Result<Signal, Invalid> {
    match v1::Signal::try_from(raw) {
        Ok(v1::Signal::Cpu) => Ok(Signal::Cpu),
        Ok(v1::Signal::CpuSteal) => Ok(Signal::CpuSteal),
        Ok(v1::Signal::Gpu) => Ok(Signal::Gpu),
        Ok(v1::Signal::MemoryPressure) => Ok(Signal::MemoryPressure),
        Ok(v1::Signal::RunQueue) => Ok(Signal::RunQueue),
        Ok(v1::Signal::Unspecified) | Err(_) => Err(Invalid("a signal this version does not know")),
    }
}

fn raw(share: Option<Permille>) -> Option<u32> {
    share.map(|share| share.get().into())
}

fn share(raw: u32) -> Result<Permille, Invalid> {
    u16::try_from(raw).ok().and_then(Permille::new).ok_or(Invalid("a share above 1000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            node: "n".into(),
            node_uid: "u".into(),
            agent_start: Instant::from_millis(1),
            sequence: 2,
            sampled_at: Instant::from_millis(30),
            class: Class::Busy { since: Instant::from_millis(20), signal: Signal::Gpu },
            utilization: classify::Utilization {
                cpu: Permille::new(7),
                gpu: GpuUse::Busy(Permille::percent(9)),
                newest_workload_seconds: Some(90),
                ..classify::Utilization::default()
            },
            gpu_waste: None,
        }
    }

    #[test]
    fn reports_and_settings_survive_the_wire() {
        let since = Instant::from_millis(20);
        let classes = [
            report().class,
            Class::Idle { since },
            Class::Unknown { since, missing: Missing::History },
            Class::Unknown { since, missing: Missing::Initialization },
            Class::Unknown { since, missing: Missing::Signal(Signal::RunQueue) },
        ];
        for class in classes {
            for gpu in [GpuUse::Absent, GpuUse::Unknown, GpuUse::Busy(Permille::ZERO)] {
                let mut sent = Report { class, gpu_waste: Some(since), ..report() };
                sent.utilization.gpu = gpu;
                assert_eq!(Report::try_from(v1::Report::from(&sent)).unwrap(), sent);
            }
        }
        let policy = IdlePolicy::default();
        assert_eq!(IdlePolicy::try_from(v1::Settings::from(&policy)).unwrap(), policy);
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let check = |change: fn(&mut v1::Report)| {
            let mut message = v1::Report::from(&report());
            change(&mut message);
            assert!(Report::try_from(message).is_err());
        };
        check(|message| message.node.clear());
        check(|message| message.class = None);
        check(|message| message.sampled_at_ms = 19);
        check(|message| message.utilization = None);
        check(|message| message.gpu_waste_since_ms = Some(31));
        check(|message| message.utilization.as_mut().unwrap().cpu = Some(1001));
        check(|message| message.utilization.as_mut().unwrap().has_gpu = false);
        check(|message| message.class = Some(v1::report::Class::Busy(v1::Busy { since_ms: 1, signal: 99 })));
    }
}
