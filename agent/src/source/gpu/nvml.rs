//! The thread that asks NVML, and the deadline of those who ask it. A call may hang in the kernel: then the question
//! stays open, nobody asks another beside it, and what it answers in the end is of the past. An answer that is only
//! late is the next reading's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant as Monotonic};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::Error;
use super::device::DeviceReader;
use super::events::{self, XidEvent};
use super::figures::Gpus;
use super::processes::all_are_shown;

/// How long an attempt to initialize NVML stands, good reasons for its failure being such that last.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether the GPUs are still the same: they seldom come and go.
const RELIST: Duration = Duration::from_secs(30);
/// An answer that took longer says nothing of now: its figures were read before and after whatever held it up.
const TOO_LATE: Duration = Duration::from_secs(3);
/// XIDs that wait to be read. A GPU in trouble makes dozens at once, and they are read with each sample.
const XIDS: usize = 256;
/// NVML is not known to need more than a few KiB; half the default leaves room.
const STACK: usize = 1 << 20;

/// Asks NVML for figures.
#[derive(Debug)]
pub struct NvmlThread {
    library: PathBuf,
    proc_root: PathBuf,
    thread: Option<Thread>,
    /// Why there is none.
    not_started: Option<Arc<std::io::Error>>,
    /// Since when a question waits for its answer.
    asked: Option<Monotonic>,
    /// Whether that was for this reading.
    asked_now: bool,
    /// The answer to the reading before, which did not wait for it.
    late: Option<Answer>,
    xids: (SyncSender<XidEvent>, Receiver<XidEvent>),
}

#[derive(Debug)]
struct Thread {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    /// The slow figures too.
    at_once: bool,
}

#[derive(Debug)]
pub struct Answer {
    pub gpus: Result<Arc<Gpus>, Error>,
    /// Single figures that could not be had.
    pub failed: Vec<Error>,
    /// How long it took, so far if it is not there.
    pub took: Duration,
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        Self { gpus: Err(error), failed: Vec::new(), took: Duration::ZERO }
    }
}

impl NvmlThread {
    pub fn new(library: PathBuf, proc_root: PathBuf) -> Self {
        Self {
            library,
            proc_root,
            thread: None,
            not_started: None,
            asked: None,
            asked_now: false,
            late: None,
            xids: mpsc::sync_channel(XIDS),
        }
    }

    /// Asks, unless the question before is still open. `at_once`: also for figures that are read now and then.
    pub fn ask(&mut self, at_once: bool) {
        self.asked_now = false;
        self.late = None;
        if let Some(thread) = self.thread.as_ref().filter(|_| self.asked.is_some()) {
            match thread.answers.try_recv() {
                Ok(late) => {
                    self.asked = None;
                    self.late = Some(late).filter(|late| late.took < TOO_LATE);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.thread = None,
            }
        }
        if self.thread.is_none() {
            let started = self.spawn().map_err(Arc::new);
            self.not_started = started.as_ref().err().cloned();
            self.thread = started.ok();
        }
        let question = Question { at_once };
        self.asked = None;
        match self.thread.as_ref().map(|thread| thread.questions.try_send(question)) {
            Some(Ok(())) => (self.asked, self.asked_now) = (Some(Monotonic::now()), true),
            Some(Err(_)) => self.thread = None,
            None => {}
        }
    }

    /// The answer to [`Self::ask`], waited for until `deadline` after it.
    pub fn answer(&mut self, deadline: Duration) -> Answer {
        if let Some(late) = self.late.take() {
            return late;
        }
        let Some((asked, thread)) = self.asked.zip(self.thread.as_ref()) else {
            let not_started = self.not_started.clone().map(|source| Error::Thread { source });
            return not_started.unwrap_or(Error::Ended).into();
        };
        if !self.asked_now {
            return unanswered(asked);
        }
        match thread.answers.recv_timeout(deadline.saturating_sub(asked.elapsed())) {
            Ok(answer) => {
                self.asked = None;
                answer
            }
            Err(RecvTimeoutError::Timeout) => unanswered(asked),
            Err(RecvTimeoutError::Disconnected) => {
                (self.thread, self.asked) = (None, None);
                Error::Ended.into()
            }
        }
    }

    /// The XIDs that NVML told of since this was last called.
    pub fn xids(&self) -> impl Iterator<Item = XidEvent> {
        self.xids.1.try_iter()
    }

    fn spawn(&self) -> std::io::Result<Thread> {
        // One question at a time, so no more than one waits.
        let (questions, asked) = mpsc::sync_channel(1);
        let (answers, answered) = mpsc::sync_channel(1);
        let worker = Worker {
            library: self.library.clone(),
            all_shown: all_are_shown(&self.proc_root),
            questions: asked,
            answers,
            xids: self.xids.0.clone(),
        };
        std::thread::Builder::new().name("nvml".into()).stack_size(STACK).spawn(move || worker.run())?;
        Ok(Thread { questions, answers: answered })
    }
}

fn unanswered(asked: Monotonic) -> Answer {
    let waited = asked.elapsed();
    Answer { took: waited, ..Error::Deadline { waited }.into() }
}

/// What runs on the thread.
struct Worker {
    library: PathBuf,
    all_shown: bool,
    questions: Receiver<Question>,
    answers: SyncSender<Answer>,
    xids: SyncSender<XidEvent>,
}

/// Why NVML is not asked any more.
enum Ended {
    /// Nobody is there to ask.
    Unwanted,
    /// It has to be initialized anew.
    Stale,
    Failed(Error),
}

impl Worker {
    fn run(self) {
        let mut refused: Option<(Monotonic, Error)> = None;
        while let Ok(question) = self.questions.recv() {
            let recent = refused.as_ref().filter(|(at, _)| at.elapsed() < RETRY);
            let ended = match recent {
                Some((_, error)) => Ended::Failed(error.clone()),
                None => {
                    refused = None;
                    initialize(&self.library).map_or_else(Ended::Failed, |nvml| self.serve(&Arc::new(nvml), question))
                }
            };
            match ended {
                Ended::Unwanted => return,
                Ended::Stale => {}
                Ended::Failed(error) => {
                    if refused.is_none() {
                        refused = Some((Monotonic::now(), error.clone()));
                    }
                    if self.answers.send(error.into()).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Answers this question and those that follow, with the GPUs that there are now.
    fn serve(&self, nvml: &Arc<Nvml>, first: Question) -> Ended {
        let count = match nvml.device_count() {
            Ok(count) => count,
            Err(error) => return Ended::Failed(Error::List { source: Arc::new(error) }),
        };
        let driver_version = nvml.sys_driver_version().unwrap_or_default();
        let mut readers: Vec<_> = (0..count).map(|index| DeviceReader::open(nvml, index)).collect();
        // Dropped on the way out, which ends the events' thread.
        let wanted = Arc::new(());
        let places = readers.iter().filter_map(|reader| Some((reader.identity.index, reader.identity.pci?)));
        if let Err(error) =
            events::spawn(Arc::clone(nvml), places.collect(), Arc::downgrade(&wanted), self.xids.clone())
        {
            tracing::debug!(%error, "no thread for NVML's events");
        }
        let mut question = first;
        let mut listed = Monotonic::now();
        loop {
            let begin = Monotonic::now();
            let all = readers.iter_mut().map(|reader| reader.read(nvml, self.all_shown, question.at_once)).collect();
            let failed = readers.iter_mut().flat_map(DeviceReader::take_failed).collect();
            let gpus = Gpus { driver_version: driver_version.clone(), all };
            if self.answers.send(Answer { gpus: Ok(Arc::new(gpus)), failed, took: begin.elapsed() }).is_err() {
                return Ended::Unwanted;
            }
            let stale = readers.iter().any(DeviceReader::is_stale);
            if stale || listed.elapsed() >= RELIST && !is_complete(nvml, &readers) {
                return Ended::Stale;
            }
            if listed.elapsed() >= RELIST {
                listed = Monotonic::now();
            }
            match self.questions.recv() {
                Ok(next) => question = next,
                Err(_) => return Ended::Unwanted,
            }
        }
    }
}

/// Whether the readers are still of all GPUs, each of which was seen.
fn is_complete(nvml: &Nvml, readers: &[DeviceReader<'_>]) -> bool {
    let as_many = nvml.device_count().is_ok_and(|count| count as usize == readers.len());
    as_many && readers.iter().all(|reader| reader.device.is_some())
}

fn initialize(library: &Path) -> Result<Nvml, Error> {
    Nvml::builder().lib_path(library.as_os_str()).init().map_err(|error| match error {
        NvmlError::LibloadingError(_) | NvmlError::FailedToLoadSymbol(_) => {
            Error::Load { library: library.to_owned(), source: Arc::new(error) }
        }
        error => Error::Initialize { source: Arc::new(error) },
    })
}
