//! What nodes and pods use, on the wire.

use std::time::Duration;

use ebb_core::time::Instant;
use ebb_core::usage::{Amount, NodeUsage, PodUsage, Sample, Signals};

use crate::{Invalid, raw, share, v1};

impl From<NodeUsage> for v1::Usage {
    fn from(usage: NodeUsage) -> Self {
        let sample = |sample: Sample| v1::Sample {
            at_ms: sample.at.as_millis(),
            window_ms: millis(sample.window),
            amount: Some(sample.amount.into()),
        };
        let pod = |pod: PodUsage| v1::PodUsage {
            uid: pod.uid,
            at_ms: pod.at.as_millis(),
            window_ms: millis(pod.window),
            containers: pod
                .containers
                .into_iter()
                .map(|(name, amount)| v1::ContainerUsage { name, amount: Some(amount.into()) })
                .collect(),
            signals: pod.signals.map(Signals::into),
        };
        Self { node: usage.node.map(sample), pods: usage.pods.into_iter().map(pod).collect() }
    }
}

impl TryFrom<v1::Usage> for NodeUsage {
    type Error = Invalid;

    fn try_from(message: v1::Usage) -> Result<Self, Invalid> {
        let sample = |sample: v1::Sample| {
            let amount = amount(sample.amount)?;
            Ok(Sample { at: Instant::from_millis(sample.at_ms), window: window(sample.window_ms)?, amount })
        };
        let pod = |pod: v1::PodUsage| {
            if pod.uid.is_empty() || pod.containers.is_empty() {
                return Err(Invalid("use of a pod without UID or containers"));
            }
            let container = |it: v1::ContainerUsage| Ok((it.name, amount(it.amount)?));
            let containers = pod.containers.into_iter().map(container).collect::<Result<_, _>>()?;
            let at = Instant::from_millis(pod.at_ms);
            let signals = pod.signals.map(Signals::try_from).transpose()?;
            Ok(PodUsage { uid: pod.uid, at, window: window(pod.window_ms)?, containers, signals })
        };
        Ok(Self {
            node: message.node.map(sample).transpose()?,
            pods: message.pods.into_iter().map(pod).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Amount> for v1::Amount {
    fn from(amount: Amount) -> Self {
        Self { cpu_nanocores: amount.cpu_nanocores, memory_bytes: amount.memory_bytes }
    }
}

fn amount(message: Option<v1::Amount>) -> Result<Amount, Invalid> {
    let message = message.ok_or(Invalid("use without its amount"))?;
    Ok(Amount { cpu_nanocores: message.cpu_nanocores, memory_bytes: message.memory_bytes })
}

impl From<Signals> for v1::Signals {
    fn from(signals: Signals) -> Self {
        Self {
            window_ms: millis(signals.window),
            gpu_busy: raw(signals.gpu_busy),
            gpu_memory_bytes: signals.gpu_memory_bytes,
            run_queue_wait: signals.run_queue_wait,
            memory_pressure: raw(signals.memory_pressure),
        }
    }
}

impl TryFrom<v1::Signals> for Signals {
    type Error = Invalid;

    fn try_from(message: v1::Signals) -> Result<Self, Invalid> {
        Ok(Self {
            window: window(message.window_ms)?,
            gpu_busy: message.gpu_busy.map(share).transpose()?,
            gpu_memory_bytes: message.gpu_memory_bytes,
            run_queue_wait: message.run_queue_wait,
            memory_pressure: message.memory_pressure.map(share).transpose()?,
        })
    }
}

fn window(millis: u64) -> Result<Duration, Invalid> {
    (millis > 0).then(|| Duration::from_millis(millis)).ok_or(Invalid("use over no time"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ebb_core::units::Permille;

    use super::*;

    #[test]
    fn usage_survives_the_wire_and_what_breaks_the_protocol_is_refused() {
        let amount = Amount { cpu_nanocores: 3, memory_bytes: 4 };
        let (at, window) = (Instant::from_millis(5), Duration::from_millis(6));
        let signals = Signals {
            window: Duration::from_millis(7),
            gpu_busy: Permille::new(8),
            gpu_memory_bytes: Some(9),
            run_queue_wait: Some(1010),
            memory_pressure: None,
        };
        let containers = vec![("c".into(), amount)];
        let pod = PodUsage { uid: "u".into(), at, window, containers, signals: Some(signals) };
        let usage = NodeUsage { node: Some(Sample { at, window, amount }), pods: vec![pod] };
        assert_eq!(NodeUsage::try_from(v1::Usage::from(usage.clone())).unwrap(), usage);
        let check = |change: fn(&mut v1::Usage)| {
            let mut message = v1::Usage::from(usage.clone());
            change(&mut message);
            assert!(NodeUsage::try_from(message).is_err());
        };
        check(|message| message.node.as_mut().unwrap().amount = None);
        check(|message| message.node.as_mut().unwrap().window_ms = 0);
        check(|message| message.pods[0].uid.clear());
        check(|message| message.pods[0].containers.clear());
        check(|message| message.pods[0].containers[0].amount = None);
        check(|message| message.pods[0].signals.as_mut().unwrap().window_ms = 0);
        check(|message| message.pods[0].signals.as_mut().unwrap().gpu_busy = Some(1001));
    }
}
