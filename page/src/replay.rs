//! A recorded run on the page, in compressed time.

use std::time::Duration;

use ebb_core::time::Instant;
use ebb_core::view::{Snapshot, Step};
use tokio::time::{Instant as Real, sleep, sleep_until};

use crate::Page;

/// Before a run starts again: to see how it ended.
const REST: Duration = Duration::from_secs(5);

/// What a run left, each in order of time.
pub struct Recording {
    pub snapshots: Vec<Snapshot>,
    pub steps: Vec<Step>,
}

/// Shows the recording again and again, `speed` times as fast as it happened, until it is dropped. To be spawned beside a server of [`Page::router`].
///
/// ```
/// # async fn demo(snapshots: Vec<ebb_core::view::Snapshot>, steps: Vec<ebb_core::view::Step>) {
/// use ebb_page::{Page, Recording, replay};
///
/// let page = Page::new("Simulated run, 60 times as fast");
/// let shown = page.clone();
/// tokio::spawn(async move { replay(&shown, &Recording { snapshots, steps }, 60).await });
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await.unwrap();
/// axum::serve(listener, page.router()).await.unwrap();
/// # }
/// ```
pub async fn replay(page: &Page, recording: &Recording, speed: u32) {
    loop {
        once(page, recording, speed.max(1)).await;
        sleep(REST).await;
        page.clear();
    }
}

async fn once(page: &Page, recording: &Recording, speed: u32) {
    let Recording { snapshots, steps } = recording;
    let firsts = [snapshots.first().map(|snapshot| snapshot.now), steps.first().map(|step| step.at)];
    let Some(begins) = firsts.into_iter().flatten().min() else { return };
    let start = Real::now();
    let due = |at: Instant| sleep_until(start + at.since(begins) / speed);
    let mut steps = steps.iter().peekable();
    for snapshot in snapshots {
        while let Some(step) = steps.next_if(|step| step.at <= snapshot.now) {
            due(step.at).await;
            page.tell(step.clone());
        }
        due(snapshot.now).await;
        page.show(snapshot);
    }
    for step in steps {
        due(step.at).await;
        page.tell(step.clone());
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::price::Cost;
    use ebb_core::view::{Cluster, Level};

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000 + seconds * 1000)
    }

    fn snapshot(seconds: u64) -> Snapshot {
        let cluster = Cluster {
            leading: true,
            synced: true,
            groups: Vec::new(),
            nodes: Vec::new(),
            waiting: Vec::new(),
            ray: Vec::new(),
        };
        Snapshot { now: at(seconds), cluster, ray: Vec::new(), hpas: Vec::new(), cost: Cost::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_is_shown_in_compressed_time_and_in_order() {
        let page = Page::new("test");
        let step = |seconds| Step { at: at(seconds), level: Level::Ray, what: String::new(), because: String::new() };
        let recording =
            Recording { snapshots: vec![snapshot(0), snapshot(60), snapshot(120)], steps: vec![step(30), step(180)] };
        let start = Real::now();
        once(&page, &recording, 60).await;
        assert_eq!(start.elapsed().as_secs(), 3);
        let state = page.state();
        assert_eq!((state.points.len(), state.steps.len()), (3, 2));
    }
}
