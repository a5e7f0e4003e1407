//! The one loop: events in, actions out. It is the only owner of the fleet, and holds no rules itself.

use std::fs::File;
use std::io::{LineWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebb_core::fleet::{Action, Event, Fleet, View};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::action;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// Events that wait for the driver. Enough for a page of a listing with the reports of the same moment; whoever sends
/// more has to wait, so that a burst costs time and not memory.
pub const INBOX: usize = 1024;
/// Events taken before looking at the clock again.
const BATCH: usize = 256;
/// Between two ticks, so that a wakeup that does not move costs little.
const REST: Duration = Duration::from_millis(1);

/// Asks the driver for its picture. Whether it answers also shows that it is alive.
pub type Queries = mpsc::Sender<oneshot::Sender<View>>;

pub struct Driver {
    pub fleet: Fleet,
    pub clock: Clock,
    pub inbox: mpsc::Receiver<Event>,
    pub queries: mpsc::Receiver<oneshot::Sender<View>>,
    /// Not bounded, because the driver must not wait for those who wait for it; and needing no bound, because the
    /// fleet keeps one call under way for each group and node, and says a thing about a pod once.
    pub outbox: mpsc::UnboundedSender<Action>,
    pub metrics: Arc<Metrics>,
    pub record: Option<Record>,
}

impl Driver {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            let tick = self.fleet.next_wakeup().map(|at| at.max(self.clock.now() + REST));
            tokio::select! {
                () = stop.cancelled() => return,
                Some(reply) = self.queries.recv() => {
                    // Who asked may have given up.
                    let _ = reply.send(self.fleet.view(self.clock.now()));
                }
                _ = self.inbox.recv_many(&mut events, BATCH) => {}
                () = self.clock.sleep_until(tick) => events.push(Event::Tick),
            }
            for event in events.drain(..) {
                if self.handle(event).is_none() {
                    return; // The effects task is gone; whoever supervises us restarts us.
                }
            }
        }
    }

    /// `None` if nobody carries out actions any more.
    fn handle(&mut self, event: Event) -> Option<()> {
        let now = self.clock.now();
        let recorded = self.record.is_some().then(|| event.clone());
        let start = Instant::now();
        let actions = self.fleet.handle(now, event);
        self.metrics.decided(start.elapsed());
        if let (Some(record), Some(event)) = (&mut self.record, recorded) {
            record.write(&Line { now, event: &event, actions: &actions });
        }
        for taken in actions {
            action::log(&taken);
            self.metrics.decision(&taken);
            self.outbox.send(taken).ok()?;
        }
        Some(())
    }
}

/// Everything that came in and what was made of it, one JSON object a line: enough to replay it.
pub struct Record {
    file: LineWriter<File>,
    broken: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    now: ebb_core::time::Instant,
    event: &'a Event,
    actions: &'a [Action],
}

impl Record {
    /// Appends: a restart must not cost the record of what led to it.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Self { file: LineWriter::new(file), broken: false })
    }

    /// A full disk must not stop the fleet: say so once, and go on without.
    fn write(&mut self, line: &Line<'_>) {
        if self.broken {
            return;
        }
        let text = serde_json::to_string(line).expect("events and actions always serialise");
        if let Err(error) = writeln!(self.file, "{text}") {
            tracing::error!(%error, "recording stopped");
            self.broken = true;
        }
    }
}
