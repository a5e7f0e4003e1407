//! systemd-logind, over the system's D-Bus: tells that the operating system is going down, and lets that be held up by a
//! lock of kind `delay`, until the node is drained or logind's `InhibitDelayMaxSec` is over.
//!
//! The kernel's boot is the node's life here: after it the agent finds a system that is not going down, and what its
//! drain changed is undone as that of any notice that is gone.

use std::convert::Infallible;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::intent::Trigger;
use ebb_core::notice::{self, Notices};
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zbus::OwnedFd;
use zbus::connection::{self, Connection};

use super::Source;
use crate::clock::Clock;
use crate::health::{Healths, chain};

/// For each answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach it. Nothing is held up meanwhile.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reach systemd-logind at {address}")]
    Connect { address: String, source: zbus::Error },
    #[error("lock the shutdown: systemd-logind lets an agent that is not root only where polkit runs")]
    Inhibit(#[source] zbus::Error),
    #[error("systemd-logind at {address} did not answer in {PATIENCE:?}")]
    Deadline { address: String },
    #[error("lost the connection to {address}")]
    Lost { address: String },
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Inhibit(_) => "refused",
            Self::Deadline { .. } => "deadline",
            Self::Lost { .. } => "lost",
        }
    }
}

/// What is used of `org.freedesktop.login1(5)`.
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> zbus::Result<u64>;
}

pub struct Logind {
    /// As D-Bus writes it: `unix:path=/run/dbus/system_bus_socket`.
    pub address: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    pub clock: Clock,
    /// Whether the node's drain is done.
    pub may_go_down: watch::Receiver<bool>,
    pub notices: watch::Sender<Notices>,
    pub healths: watch::Sender<Healths>,
}

impl Logind {
    /// Holds the lock until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            never = self.hold_for_ever() => match never {},
        }
    }

    async fn hold_for_ever(&self) -> Infallible {
        let mut said = None;
        loop {
            let begin = Monotonic::now();
            let Err(error) = self.hold(begin).await;
            self.notices.send_if_modified(|notices| notices.learn(Trigger::Shutdown, None));
            let (kind, took) = (error.kind(), begin.elapsed());
            if said.replace(kind) != Some(kind) {
                tracing::warn!(kind, error = chain(&error), "a shutdown of this system is not held up");
            }
            self.record(took, Some(&error.into()));
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hold(&self, begin: Monotonic) -> Result<Infallible, Error> {
        let bus = self.ask(connect(&self.address)).await?;
        let manager = self.ask(ManagerProxy::new(&bus)).await?;
        let mut signals = self.ask(manager.receive_prepare_for_shutdown()).await?;
        let mut lock = Some(self.lock(&manager).await?);
        let delay = Duration::from_micros(self.ask(manager.inhibit_delay_max()).await?);
        let mut is_down = self.ask(manager.preparing_for_shutdown()).await?;
        self.record(begin.elapsed(), None);
        tracing::info!(?delay, "a shutdown of this system is held up until the node is drained");
        let mut may_go_down = self.may_go_down.clone();
        loop {
            let known = notice::of_shutdown(is_down, &self.boot, delay, self.clock.now());
            self.notices.send_if_modified(|notices| notices.learn(Trigger::Shutdown, Some(known)));
            tokio::select! {
                signal = signals.next() => {
                    let signal = signal.ok_or_else(|| Error::Lost { address: self.address.clone() })?;
                    is_down = signal.args().map_err(|source| self.not_reached(source))?.start;
                    tracing::warn!(is_down, ?delay, "systemd-logind says whether this system is going down");
                }
                Ok(_) = may_go_down.wait_for(|may| *may), if is_down && lock.is_some() => {
                    tracing::info!("the node is drained: its system may go down");
                    lock = None;
                }
            }
            if !is_down && lock.is_none() {
                lock = Some(self.lock(&manager).await?);
            }
        }
    }

    /// Held for as long as it is not dropped.
    async fn lock(&self, manager: &ManagerProxy<'_>) -> Result<OwnedFd, Error> {
        let lock = manager.inhibit("shutdown", "ebb-agent", "the node is to be drained first", "delay");
        self.in_time(lock).await?.map_err(Error::Inhibit)
    }

    async fn ask<T>(&self, answer: impl Future<Output = zbus::Result<T>>) -> Result<T, Error> {
        self.in_time(answer).await?.map_err(|source| self.not_reached(source))
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let late = |_| Error::Deadline { address: self.address.clone() };
        tokio::time::timeout(PATIENCE, answer).await.map_err(late)
    }

    fn not_reached(&self, source: zbus::Error) -> Error {
        Error::Connect { address: self.address.clone(), source }
    }

    fn record(&self, took: Duration, error: Option<&super::Error>) {
        self.healths.send_modify(|healths| {
            healths.record(Source::Logind, took, error);
        });
    }
}

async fn connect(address: &str) -> zbus::Result<Connection> {
    connection::Builder::address(address).build().await
}
