//! Keeps the live page's picture fresh: asks the driver, and meters what the instances cost.

use std::time::Duration;

use ebb_core::price::{self, Meter};
use ebb_core::view::{Cluster, Snapshot};
use ebb_page::Page;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::driver::{self, Queries, Query};

/// While somebody looks.
const WATCHED: Duration = Duration::from_secs(1);
/// While nobody does: often enough that the timeline and the cost have a past when somebody comes.
const UNWATCHED: Duration = Duration::from_secs(15);

pub async fn keep(page: Page, queries: Queries, clock: Clock) {
    let mut meter = Meter::new(clock.now());
    loop {
        // Pods are most of it; whoever comes to look has them a moment later.
        let query = if page.watchers() > 0 { Query::Picture } else { Query::Outline };
        if let Some(cluster) = driver::ask(&queries, query).await {
            page.show(&snapshot(cluster, &mut meter, clock.now()));
        }
        let rest = if page.watchers() > 0 { WATCHED } else { UNWATCHED };
        tokio::select! {
            () = sleep(rest) => {}
            () = page.arrival() => {}
        }
    }
}

/// Tasks that run in Ray and the HPAs are not observed on a real cluster; what waits in Ray is in `cluster`. The cost is
/// since the start of this process.
fn snapshot(cluster: Cluster, meter: &mut Meter, now: ebb_core::time::Instant) -> Snapshot {
    let instances = cluster.groups.iter().map(|group| (group.instances, price::per_hour(&group.instance_type)));
    meter.set(now, instances);
    Snapshot { now, cluster, ray: Vec::new(), hpas: Vec::new(), cost: meter.cost(now) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use ebb_core::fleet::{Event, Fleet, GroupState};
    use ebb_core::kubernetes::Node;
    use ebb_core::policy::{Group, Policy};
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::decisions::Decisions;
    use crate::driver::{Driver, INBOX};
    use crate::http::{self, Shown};
    use crate::metrics::Metrics;
    use crate::standing::Standing;

    /// Reads until this comes.
    async fn get(address: &str, path: &str, until: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(until) {
            assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "{}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_page_shows_the_drivers_nodes_and_decisions() {
        let group = Group {
            min: 1,
            max: 3,
            instance_type: "m5.xlarge".into(),
            unneeded_for: Duration::from_secs(600),
            ..Group::default()
        };
        let policy = Policy { groups: BTreeMap::from([("workers".to_owned(), group)]), ..Policy::default() };
        let (inbox, events) = mpsc::channel(INBOX);
        let (queries, asked) = mpsc::channel(1);
        let (outbox, mut actions) = mpsc::unbounded_channel();
        let (clock, stop, page) = (Clock::start(), CancellationToken::new(), Page::new("test"));
        let decisions = Decisions::default();
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let driver = Driver {
            fleet: Fleet::new(policy),
            clock,
            inbox: events,
            queries: asked,
            outbox,
            metrics: metrics.clone(),
            page: page.clone(),
            decisions: decisions.clone(),
            record: None,
        };
        tokio::spawn(driver.run(stop.clone()));
        tokio::spawn(keep(page.clone(), queries.clone(), clock));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let standing = Standing::new(inbox.clone());
        let shown = Shown { registry: Arc::new(registry), metrics, standing, queries, page, decisions, clock };
        tokio::spawn(http::serve(listener, shown, stop));

        assert!(get(&address, "/", "</html>").await.contains("<title>Ebb</title>"));
        let node = Node { name: "node-7".into(), uid: "u".into(), ready: true, ..Node::default() };
        for event in [Event::NodeApplied(node), Event::Leading(true), Event::Synced(true)] {
            inbox.send(event).await.unwrap();
        }
        let asked = actions.recv().await.unwrap();
        let state = GroupState { name: "workers".into(), max: 3, ..GroupState::default() };
        inbox.send(Event::Groups { asked, groups: vec![state] }).await.unwrap();
        let text = get(&address, "/events", "raises workers from 0 to 1").await;
        assert!(text.contains("text/event-stream") && text.contains("fewer nodes than the minimum of 1"), "{text}");
        get(&address, "/events", r#""name":"node-7""#).await;
        // Metrics are there as ever; programs get the same as JSON.
        get(&address, "/metrics", "ebb_coordinator_nodes").await;
        get(&address, "/api/v1/cluster", r#""leading":true"#).await;
        get(&address, "/api/v1/decisions?limit=1", r#""reason":"BelowMinimum""#).await;
        get(&address, "/api/v1/decisions?last=1", "expected limit=NUMBER").await;
    }
}
