//! What this coordinator may do right now: two facts that several tasks ask for. Whoever finds one out says it here.

use ebb_core::fleet::Event;
use tokio::sync::{mpsc, watch};

#[derive(Clone, Debug)]
pub struct Standing {
    leading: watch::Sender<bool>,
    synced: watch::Sender<bool>,
    inbox: mpsc::Sender<Event>,
}

impl Standing {
    pub fn new(inbox: mpsc::Sender<Event>) -> Self {
        Self { leading: watch::Sender::new(false), synced: watch::Sender::new(false), inbox }
    }

    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    pub fn synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub async fn set_leading(&self, leading: bool) {
        Self::set(&self.leading, leading, &self.inbox, Event::Leading(leading)).await;
    }

    pub async fn set_synced(&self, synced: bool) {
        Self::set(&self.synced, synced, &self.inbox, Event::Synced(synced)).await;
    }

    /// Everybody else hears of it first: the inbox may be full, and what must stop has to stop at once.
    async fn set(fact: &watch::Sender<bool>, value: bool, inbox: &mpsc::Sender<Event>, event: Event) {
        if fact.send_replace(value) != value {
            // The driver is gone only when the process is about to be.
            let _ = inbox.send(event).await;
        }
    }

    /// Returns once this coordinator leads.
    pub async fn won(&self) {
        // As below.
        let _ = self.leading.subscribe().wait_for(|leading| *leading).await;
    }

    /// Returns once this coordinator does not lead.
    pub async fn lost(&self) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.leading.subscribe().wait_for(|leading| !leading).await;
    }
}
