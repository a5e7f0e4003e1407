//! What is known of the node's GPUs: figures from NVML, XIDs from NVML and the kernel's log, and the core's verdict on
//! each. A node without GPUs asks none of these.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ebb_core::classify::GpuUse;
use ebb_core::time::Instant;
use ebb_core::xid::{Figures, GpuVerdict, History, Origin, Policy, Verdict};

use crate::clock::Clock;
use crate::health::Healths;
use crate::source::gpu::{self, Answer, Gpu, Gpus, Identity, NvmlThread, PciAddress};
use crate::source::kmsg::Kmsg;
use crate::source::kubepods::{Owner, owner_of_process};
use crate::source::{Error, Source, open};

/// What NVIDIA's driver calls it.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// How long a reading waits for NVML. Eight GPUs answer within tens of milliseconds; the first time, when the driver
/// wakes them up, it may take longer, and is unknown until then.
const DEADLINE: Duration = Duration::from_millis(500);

/// More than a machine has. A kernel's log that names yet others is not believed.
const MOST: usize = 128;

/// How the GPUs are asked.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `None`: the driver's, where there is a GPU on the bus.
    pub library: Option<PathBuf>,
    pub kmsg: PathBuf,
    pub policy: Policy,
}

/// All that is known at one moment.
#[derive(Debug)]
pub struct GpuReading {
    /// `None`: NVML did not answer.
    pub gpus: Option<Arc<Gpus>>,
    /// Of each GPU that NVML or the kernel's log ever named.
    pub health: Vec<GpuHealth>,
    /// Of the policy behind the verdicts.
    pub policy_version: Arc<str>,
    /// Of the GPUs' processes, those of pods.
    pub owners: BTreeMap<u32, Owner>,
}

#[derive(Clone, Debug)]
pub struct GpuHealth {
    pub pci: PciAddress,
    /// `None`: only the kernel's log named it.
    pub identity: Option<Arc<Identity>>,
    /// How often each XID came since the agent started.
    pub xids: BTreeMap<u32, u64>,
    pub last_xid: Option<u32>,
    pub verdict: GpuVerdict,
}

#[derive(Debug)]
pub struct NodeGpus {
    sys: PathBuf,
    settings: Settings,
    policy_version: Arc<str>,
    clock: Clock,
    /// Once known it stays: devices are on the bus from the boot on.
    on_bus: Option<usize>,
    nvml: NvmlThread,
    proc_root: PathBuf,
    /// By process.
    owners: BTreeMap<u32, Owner>,
    kmsg: Kmsg,
    known: BTreeMap<PciAddress, Known>,
    /// XIDs came: what the driver says the GPU needs may have changed.
    news: bool,
}

/// What is remembered of one GPU, also while it says nothing.
#[derive(Debug, Default)]
struct Known {
    identity: Option<Arc<Identity>>,
    history: History,
    figures: Figures,
    verdict: Option<Verdict>,
}

impl NodeGpus {
    pub fn new(sys: PathBuf, proc_root: PathBuf, settings: Settings, clock: Clock) -> Self {
        let library = settings.library.clone().unwrap_or_else(|| LIBRARY.into());
        let mut kmsg = Kmsg::new(&settings.kmsg);
        if settings.library.is_some() || gpu::detect(&sys).is_ok_and(|count| count > 0) {
            kmsg.open();
        }
        Self {
            sys,
            clock,
            on_bus: None,
            nvml: NvmlThread::new(library, proc_root.clone()),
            proc_root,
            owners: BTreeMap::new(),
            kmsg,
            known: BTreeMap::new(),
            news: false,
            policy_version: settings.policy.version().into(),
            settings,
        }
    }

    /// Sends the question, whose answer [`Self::read`] takes: meanwhile others are read.
    pub fn ask(&mut self, healths: &mut Healths) {
        if self.on_bus.is_none() {
            let detect = || gpu::detect(&self.sys);
            // Who names the library knows that there are GPUs; then only NVML's word counts as the source's.
            let asked_anyway = self.settings.library.is_some();
            self.on_bus = if asked_anyway { detect().ok() } else { healths.watch(Source::Gpu, detect) };
        }
        if self.may_have_gpus() {
            self.nvml.ask(std::mem::take(&mut self.news));
        }
    }

    /// `None`: the node has no GPU, or nobody can say whether it has.
    pub fn read(&mut self, healths: &mut Healths) -> (GpuUse, Option<Arc<GpuReading>>) {
        if !self.may_have_gpus() {
            let without = if self.on_bus.is_some() { GpuUse::Absent } else { GpuUse::Unknown };
            return (without, None);
        }
        let Answer { gpus, failed, took } = self.nvml.answer(DEADLINE);
        let gpus = healths.note(Source::Gpu, took, gpus.map_err(Error::Gpu));
        for error in failed {
            tracing::debug!(source = Source::Gpu.name(), kind = error.kind(), %error, "no figure");
            healths.count(Source::Gpu, &Error::Gpu(error));
        }
        let now = self.clock.now();
        if let Some(gpus) = &gpus {
            self.remember(now, gpus);
            self.find_owners(gpus);
        }
        self.record_xids(healths);
        let health = self.known.iter_mut().map(|(pci, known)| known.judge(now, *pci, &self.settings.policy)).collect();
        let on_bus = self.on_bus.unwrap_or_default();
        let node_use = gpus.as_ref().map_or(GpuUse::Unknown, |gpus| gpus.node_use(on_bus));
        let policy_version = Arc::clone(&self.policy_version);
        (node_use, Some(Arc::new(GpuReading { gpus, health, policy_version, owners: self.owners.clone() })))
    }

    fn may_have_gpus(&self) -> bool {
        self.settings.library.is_some() || self.on_bus.is_some_and(|count| count > 0)
    }

    fn remember(&mut self, now: Instant, gpus: &Gpus) {
        for known in self.known.values_mut().filter(|known| known.identity.is_some()) {
            // Until the list below says otherwise: one that is no longer in it cannot be reached either.
            known.figures.lost = true;
        }
        for gpu in &gpus.all {
            let Some(pci) = gpu.identity.pci else { continue };
            let known = self.known.entry(pci).or_default();
            known.identity = Some(Arc::clone(&gpu.identity));
            known.figures.lost = gpu.lost;
            if !gpu.lost {
                known.figures = figures(now, gpu);
            }
        }
    }

    /// A process keeps its cgroup for as long as it holds a GPU, so it is looked up once.
    fn find_owners(&mut self, gpus: &Gpus) {
        let mut before = std::mem::take(&mut self.owners);
        for pid in gpus.all.iter().flat_map(Gpu::all_processes).map(|process| process.pid) {
            let owner = before.remove(&pid).or_else(|| {
                let file = open(&self.proc_root.join(pid.to_string()).join("cgroup"));
                let text = file.and_then(io::read_to_string);
                text.ok().and_then(|text| owner_of_process(&text))
            });
            self.owners.extend(owner.map(|owner| (pid, owner)));
        }
    }

    fn record_xids(&mut self, healths: &mut Healths) {
        let now = self.clock.now();
        let logged = healths.watch(Source::Kmsg, || self.kmsg.read()).unwrap_or_default();
        if logged.overruns > 0 {
            healths.count(Source::Kmsg, &self.kmsg.overrun(logged.overruns));
        }
        for xid in logged.xids {
            if self.known.len() >= MOST && !self.known.contains_key(&xid.pci) {
                continue;
            }
            self.known.entry(xid.pci).or_default().history.record(now, xid.xid, Origin::KernelLog);
            self.news = true;
            let (pid, process) = (xid.pid, xid.process);
            tracing::warn!(pci = %xid.pci, xid = xid.xid, pid, process, "XID in the kernel's log");
        }
        for event in self.nvml.xids() {
            let at = self.clock.at(event.at);
            if self.known.entry(event.pci).or_default().history.record(at, event.xid, Origin::Nvml) {
                tracing::warn!(pci = %event.pci, xid = event.xid, "XID from NVML");
            }
            self.news = true;
        }
    }
}

impl Known {
    fn judge(&mut self, now: Instant, pci: PciAddress, policy: &Policy) -> GpuHealth {
        let verdict = GpuVerdict::of(now, policy, &self.history, self.figures);
        if self.verdict.replace(verdict.verdict).unwrap_or(Verdict::Healthy) != verdict.verdict {
            let uuid = self.identity.as_ref().map(|identity| identity.uuid.as_str());
            let because = verdict.reason.as_ref().map(ToString::to_string);
            if verdict.verdict.drains() {
                tracing::warn!(%pci, uuid, verdict = verdict.verdict.name(), because, "GPU judged anew");
            } else {
                tracing::info!(%pci, uuid, verdict = verdict.verdict.name(), because, "GPU judged anew");
            }
        }
        GpuHealth {
            pci,
            identity: self.identity.clone(),
            xids: self.history.totals().clone(),
            last_xid: self.history.last(),
            verdict,
        }
    }
}

fn figures(now: Instant, gpu: &Gpu) -> Figures {
    let slow = &gpu.slow;
    let read = slow.read.map(|read| now.before(read.elapsed()));
    Figures {
        lost: false,
        recovery: read.zip(slow.recovery),
        row_remap_failure: slow.row_remap_failure,
        row_remap_pending: slow.row_remap_pending,
        uncorrected_ecc: slow.ecc.volatile_uncorrected,
    }
}
