//! One GPU, read again and again: what was read up to, what it does not have, and its MIG instances.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::units::Permille;
use nvml_wrapper::enum_wrappers::device::{Clock, Sampling, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{MemoryInfo, Sample};
use nvml_wrapper::{Device, Nvml};

use super::Error;
use super::answers::{Answers, State};
use super::figures::{Busy, Gpu, GpuMemory, GpuProcess, Now, Slow};
use super::gpm::Gpm;
use super::identity::Identity;
use super::instance::{self, InstanceReader};
use super::processes::{Shares, processes};
use super::slow::{self, MEMORY_TEMPERATURE};

/// How often the slow figures are read.
const SLOW_EVERY: Duration = Duration::from_secs(10);
/// The driver samples utilization at least once a second; between two samples the last one holds, no longer.
const SAMPLE_HOLDS: Duration = Duration::from_secs(3);

const SAMPLES: &str = "utilization samples";

#[derive(Debug)]
pub(super) struct DeviceReader<'nvml> {
    pub(super) identity: Arc<Identity>,
    /// `None`: lost before it was seen.
    pub(super) device: Option<Device<'nvml>>,
    answers: Answers,
    utilization: Utilization,
    shares: Shares,
    with_gpm: bool,
    gpm: Gpm<'nvml>,
    mig: Option<Vec<InstanceReader<'nvml>>>,
    slow: Arc<Slow>,
}

impl<'nvml> DeviceReader<'nvml> {
    /// A GPU that cannot be reached is there all the same, without a name.
    pub(super) fn open(nvml: &'nvml Nvml, index: u32) -> Self {
        let mut answers = Answers::of(index);
        let device = answers.ask("handle", || nvml.device_by_index(index));
        let mut identity = Identity { uuid: String::new(), index, model: String::new(), pci: None, minor: None };
        let mut with_gpm = false;
        if let Some(device) = &device {
            identity.uuid = answers.ask("UUID", || device.uuid()).unwrap_or_default();
            identity.model = answers.ask("model", || device.name()).unwrap_or_default();
            identity.pci = answers.ask("PCI address", || device.pci_info()).and_then(|pci| pci.bus_id.parse().ok());
            identity.minor = answers.ask("minor number", || device.minor_number());
            with_gpm = answers.ask("GPM support", || device.gpm_support()).unwrap_or(false);
        }
        Self {
            identity: Arc::new(identity),
            device,
            answers,
            utilization: Utilization::default(),
            shares: Shares::default(),
            with_gpm,
            gpm: Gpm::default(),
            mig: None,
            slow: Arc::default(),
        }
    }

    /// `at_once`: the slow figures too, however new they are.
    pub(super) fn read(&mut self, nvml: &'nvml Nvml, all_shown: bool, at_once: bool) -> Gpu {
        // Taken out, so that all else can change while it is used.
        let Some(device) = self.device.take() else { return self.lost() };
        let gpu = self.read_from(&device, nvml, all_shown, at_once);
        self.device = Some(device);
        gpu
    }

    /// Whether NVML must be initialized anew to say more of this GPU.
    pub(super) fn is_stale(&self) -> bool {
        self.answers.state == State::Stale
    }

    pub(super) fn take_failed(&mut self) -> Vec<Error> {
        let mut failed = self.answers.take_failed();
        failed.extend(self.mig.iter_mut().flatten().flat_map(|instance| instance.answers().take_failed()));
        failed
    }

    fn read_from(&mut self, device: &Device<'nvml>, nvml: &'nvml Nvml, all_shown: bool, at_once: bool) -> Gpu {
        self.answers.begin();
        if at_once || self.slow.read.is_none_or(|read| read.elapsed() >= SLOW_EVERY) {
            self.read_slow(nvml, device);
        }
        let now = self.now(nvml, device);
        let processes = if self.mig.is_none() { self.processes(device, all_shown) } else { None };
        let with_gpm = self.with_gpm;
        let mig = self.mig.as_mut().map(|instances| {
            instances.iter_mut().map(|instance| instance.read(nvml, device, with_gpm, all_shown)).collect()
        });
        if self.answers.state == State::Lost {
            // Once it is back, nothing of before holds.
            self.slow = Arc::default();
            self.gpm.forget();
            return self.lost();
        }
        let identity = Arc::clone(&self.identity);
        Gpu { identity, lost: false, now, slow: Arc::clone(&self.slow), mig, processes }
    }

    fn lost(&self) -> Gpu {
        let identity = Arc::clone(&self.identity);
        Gpu { identity, lost: true, now: Now::default(), slow: Arc::default(), mig: None, processes: None }
    }

    fn processes(&mut self, device: &Device<'nvml>, all_shown: bool) -> Option<Vec<GpuProcess>> {
        let mut processes = processes(device, &mut self.answers, all_shown)?;
        self.shares.fill(device, &mut self.answers, &mut processes);
        Some(processes)
    }

    fn read_slow(&mut self, nvml: &'nvml Nvml, device: &Device<'nvml>) {
        let before = self.mig.take();
        let in_mig_mode = before.is_some();
        self.mig = instance::list(nvml, device, &mut self.answers, before);
        if in_mig_mode != self.mig.is_some() {
            self.answers.forget();
        }
        self.slow = Arc::new(slow::read(device, &mut self.answers));
    }

    fn now(&mut self, nvml: &'nvml Nvml, device: &Device<'nvml>) -> Now {
        let Self { answers, utilization, gpm, with_gpm, .. } = self;
        let rates = answers.ask("utilization", || device.utilization_rates());
        let busy = match utilization.read(device, answers) {
            // Some virtual GPUs have no buffer of samples, only the latest.
            None if !answers.supports(SAMPLES) => rates.as_ref().and_then(|rates| Busy::constant(rates.gpu)),
            busy => busy,
        };
        let activity = with_gpm.then(|| {
            answers.ask("activity", || {
                let sample = device.gpm_sample();
                sample.and_then(|sample| gpm.since(nvml, sample)).inspect_err(|_| gpm.forget())
            })
        });
        let (number, _) = MEMORY_TEMPERATURE;
        let memory_temperature = slow::fields(device, answers, &[MEMORY_TEMPERATURE]).get(&number).copied();
        Now {
            busy,
            memory_busy: rates.and_then(|rates| Permille::from_ratio(f64::from(rates.memory), 100.0)),
            memory: answers.ask("memory", || device.memory_info()).map(GpuMemory::from),
            power_milliwatts: answers.ask("power", || device.power_usage()),
            energy_millijoules: answers.ask("energy", || device.total_energy_consumption()),
            sm_clock_megahertz: answers.ask("SM clock", || device.clock_info(Clock::SM)),
            memory_clock_megahertz: answers.ask("memory clock", || device.clock_info(Clock::Memory)),
            temperature_celsius: answers.ask("temperature", || device.temperature(TemperatureSensor::Gpu)),
            memory_temperature_celsius: memory_temperature.and_then(|celsius| u32::try_from(celsius).ok()),
            throttle_reasons: answers.ask("throttle reasons", || device.current_throttle_reasons()).map(|on| on.bits()),
            activity: activity.flatten().flatten(),
        }
    }
}

impl From<MemoryInfo> for GpuMemory {
    fn from(memory: MemoryInfo) -> Self {
        Self { used: memory.used, reserved: memory.reserved, total: memory.total }
    }
}

impl Busy {
    fn constant(percent: u32) -> Option<Self> {
        let share = Permille::from_ratio(f64::from(percent), 100.0)?;
        Some(Self { mean: share, max: share })
    }

    fn of(percents: &[f64]) -> Option<Self> {
        let max = percents.iter().copied().reduce(f64::max)?;
        let mean = percents.iter().sum::<f64>() / percents.len() as f64;
        Some(Self { mean: Permille::from_ratio(mean, 100.0)?, max: Permille::from_ratio(max, 100.0)? })
    }
}

/// Up to where one GPU's utilization samples were read: each GPU has its own clock for them.
#[derive(Debug, Default)]
struct Utilization {
    last_seen: u64,
    latest: Option<(Monotonic, Busy)>,
}

impl Utilization {
    fn read(&mut self, device: &Device<'_>, answers: &mut Answers) -> Option<Busy> {
        let since = self.last_seen;
        let samples = answers.ask(SAMPLES, || match device.samples(Sampling::GpuUtilization, since) {
            // None since.
            Err(NvmlError::NotFound) => Ok(Vec::new()),
            samples => samples,
        });
        if let Some(busy) = self.take(samples?) {
            self.latest = Some((Monotonic::now(), busy));
        }
        self.latest.filter(|(read, _)| read.elapsed() < SAMPLE_HOLDS).map(|(_, busy)| busy)
    }

    /// What the new ones among the samples say. Of the first ones, which reach far back, only the newest counts.
    fn take(&mut self, mut samples: Vec<Sample>) -> Option<Busy> {
        let first = self.last_seen == 0;
        samples.retain(|sample| sample.timestamp > self.last_seen);
        samples.sort_by_key(|sample| sample.timestamp);
        self.last_seen = samples.last()?.timestamp;
        if first {
            samples.drain(..samples.len() - 1);
        }
        let percents: Vec<_> = samples.iter().map(|sample| percent(&sample.value)).collect();
        Busy::of(&percents)
    }
}

fn percent(value: &SampleValue) -> f64 {
    match value {
        SampleValue::F64(value) => *value,
        SampleValue::U32(value) => f64::from(*value),
        SampleValue::U64(value) => *value as f64,
        SampleValue::I64(value) => *value as f64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(times_and_percents: &[(u64, u32)]) -> Vec<Sample> {
        let sample =
            |(timestamp, percent): &(u64, u32)| Sample { timestamp: *timestamp, value: SampleValue::U32(*percent) };
        times_and_percents.iter().map(sample).collect()
    }

    fn busy(mean: u16, max: u16) -> Option<Busy> {
        Some(Busy { mean: Permille::new(mean)?, max: Permille::new(max)? })
    }

    #[test]
    fn the_maximum_and_the_mean_are_over_what_is_new() {
        let mut utilization = Utilization::default();
        assert_eq!(utilization.take(samples(&[(1, 100), (2, 100), (3, 20)])), busy(200, 200), "the past counts not");
        assert_eq!(utilization.take(samples(&[(3, 20), (5, 60), (4, 0)])), busy(300, 600));
        assert_eq!(utilization.take(samples(&[(4, 0), (5, 60)])), None);
        assert_eq!(utilization.take(Vec::new()), None);
    }

    proptest! {
        #[test]
        fn no_sample_counts_twice_and_none_is_missed(batches in prop::collection::vec(
            prop::collection::vec(0..=100_u32, 0..5), 1..20,
        )) {
            let mut utilization = Utilization::default();
            let mut time = 0;
            let mut all = Vec::new();
            for batch in batches {
                let new: Vec<_> = batch.into_iter().map(|percent| { time += 1; (time, percent) }).collect();
                let first = all.is_empty();
                all.extend(&new);
                // The driver's buffer still holds what was read before.
                let found = utilization.take(samples(&all));
                let counted = if first { &new[new.len().saturating_sub(1)..] } else { &new[..] };
                let percents: Vec<_> = counted.iter().map(|(_, percent)| f64::from(*percent)).collect();
                prop_assert_eq!(found, Busy::of(&percents));
            }
        }
    }
}
