//! The live page: one router with its assets, served by the coordinator on a real cluster and by `ebb demo --serve` on
//! a simulated one. Told pictures and steps; who looks at it gets the whole once, and then what changes.
//!
//! Read-only: nothing that a browser sends changes anything.

mod http;
mod replay;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use ebb_core::view::{Level, Snapshot, Step};
use tokio::sync::{Notify, broadcast};

pub use replay::{Recording, replay};
use wire::{Full, Picture, Update};

/// Decisions that a newcomer is told of.
const STEPS: usize = 300;
/// Points of the timeline. When there are more, every second one is left out, so that it always covers everything.
const POINTS: usize = 600;
/// Updates that wait for a slow reader. One that falls further behind gets the whole anew: it costs us no more memory.
const BEHIND: usize = 32;

/// A handle to one page; clones are the same page.
#[derive(Clone)]
pub struct Page(Arc<Shared>);

struct Shared {
    title: String,
    state: Mutex<State>,
    updates: broadcast::Sender<News>,
    /// Somebody has come to look.
    arrived: Notify,
}

/// What goes to everybody who looks.
#[derive(Clone)]
enum News {
    /// JSON of an [`Update`].
    Update(Arc<str>),
    /// Everything is different.
    Anew,
}

#[derive(Default)]
struct State {
    picture: Arc<Picture>,
    /// By the nodes' UIDs: a short name on the wire.
    ids: BTreeMap<String, u32>,
    next_id: u32,
    steps: VecDeque<Arc<Step>>,
    /// The last of each level.
    last: BTreeMap<Level, Arc<Step>>,
    points: Vec<wire::Point>,
}

impl Page {
    /// `title` says whose cluster it is, or which run.
    pub fn new(title: impl Into<String>) -> Self {
        let updates = broadcast::Sender::new(BEHIND);
        Self(Arc::new(Shared { title: title.into(), state: Mutex::default(), updates, arrived: Notify::new() }))
    }

    /// The page, to be mounted at a root: `/`, its assets, and `/events`.
    pub fn router(&self) -> axum::Router {
        http::router(self.clone())
    }

    /// How many look at it now.
    pub fn watchers(&self) -> usize {
        self.0.updates.receiver_count()
    }

    /// Returns when somebody has come since it last returned.
    pub async fn arrival(&self) {
        self.0.arrived.notified().await;
    }

    /// Things are like this now.
    pub fn show(&self, snapshot: &Snapshot) {
        let mut state = self.state();
        let picture = state.picture_of(snapshot);
        let point = picture.point();
        state.points.push(point);
        if state.points.len() > POINTS {
            let mut keep = false;
            state.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
        let former = std::mem::replace(&mut state.picture, Arc::new(picture));
        // Under the lock, so that whoever looks from now on, and has seen this picture, is not told of it again.
        self.send(&Update::between(&former, &state.picture).at(point));
    }

    /// Somebody did something.
    pub fn tell(&self, step: Step) {
        let mut state = self.state();
        let step = Arc::new(step);
        if state.steps.len() == STEPS {
            state.steps.pop_front();
        }
        state.steps.push_back(step.clone());
        state.last.insert(step.level, step.clone());
        self.send(&Update::default().with([&*step]));
    }

    /// Forgets everything, as for another run.
    pub fn clear(&self) {
        *self.state() = State::default();
        let _nobody_looks = self.0.updates.send(News::Anew);
    }

    fn send(&self, update: &Update<'_>) {
        if self.watchers() > 0 {
            let _all_have_gone = self.0.updates.send(News::Update(update.to_json().into()));
        }
    }

    /// The whole, as JSON, and what comes after it.
    fn look(&self) -> (String, broadcast::Receiver<News>) {
        let state = self.state();
        let updates = self.0.updates.subscribe();
        let (picture, points) = (state.picture.clone(), state.points.clone());
        let steps: Vec<_> = state.steps.iter().cloned().collect();
        let last: Vec<_> = state.last.values().cloned().collect();
        drop(state);
        let full = Full {
            title: &self.0.title,
            levels: Level::ALL.map(Level::title),
            last: wire::Step::all(last.iter().map(Arc::as_ref)),
            points,
        };
        let whole = Update::whole(full, &Picture::default(), &picture).with(steps.iter().map(Arc::as_ref));
        (whole.to_json(), updates)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nobody panics while holding it")
    }
}

impl State {
    fn picture_of(&mut self, snapshot: &Snapshot) -> Picture {
        let mut ids = BTreeMap::new();
        for node in &snapshot.cluster.nodes {
            let id = self.ids.get(&node.uid).copied().unwrap_or_else(|| {
                self.next_id += 1;
                self.next_id
            });
            ids.insert(node.uid.clone(), id);
        }
        self.ids = ids;
        Picture::of(snapshot, &self.ids)
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::classify::{Class, Signal, Utilization};
    use ebb_core::price::Cost;
    use ebb_core::resources::Resources;
    use ebb_core::time::Instant;
    use ebb_core::units::Permille;
    use ebb_core::view::{Cluster, Group, Node, Pod};
    use serde_json::Value;

    use super::*;

    fn resources(cpu: &str, memory: &str) -> Resources {
        Resources::from_texts([("cpu", cpu), ("memory", memory)]).unwrap()
    }

    fn node(number: usize) -> Node {
        let pods = (0..8).map(|pod| Pod {
            name: format!("training/bursty-worker-{number:04}-{pod}"),
            daemon: pod < 2,
            terminating: false,
            requests: resources("400m", "1Gi"),
        });
        Node {
            name: format!("ip-10-0-{}-{}.ec2.internal", number / 250, number % 250),
            uid: format!("uid-{number}"),
            group: Some("cpu-workers".to_owned()),
            ready: true,
            unschedulable: false,
            draining: false,
            drained: false,
            class: Some(Class::Busy { since: Instant::from_millis(1_000), signal: Signal::Cpu }),
            gpu_waste: None,
            ray_workers: Vec::new(),
            idle_ray_only: None,
            stays: None,
            utilization: Some(Utilization { cpu: Some(Permille::percent(70)), ..Utilization::default() }),
            allocatable: resources("3920m", "14Gi"),
            requested: resources("3200m", "8Gi"),
            pods: pods.collect(),
        }
    }

    fn snapshot(nodes: usize) -> Snapshot {
        let group = Group {
            name: "cpu-workers".to_owned(),
            instance_type: "m5.xlarge".to_owned(),
            observed: true,
            min: 2,
            max: 1000,
            desired: Some(nodes as u32),
            instances: nodes as u32,
            failing: None,
        };
        let nodes = (0..nodes).map(node).collect();
        Snapshot {
            now: Instant::from_millis(60_000),
            cluster: Cluster {
                leading: true,
                synced: true,
                groups: vec![group],
                nodes,
                waiting: Vec::new(),
                ray: Vec::new(),
            },
            ray: Vec::new(),
            hpas: Vec::new(),
            cost: Cost::default(),
        }
    }

    fn step(what: &str) -> Step {
        Step {
            at: Instant::from_millis(60_000),
            level: Level::NodeAutoscaler,
            what: what.to_owned(),
            because: String::new(),
        }
    }

    fn next(updates: &mut broadcast::Receiver<News>) -> Value {
        match updates.try_recv() {
            Ok(News::Update(text)) => serde_json::from_str(&text).unwrap(),
            _ => panic!("an update was due"),
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let page = Page::new("test");
        let mut now = snapshot(3);
        page.show(&now);
        let (_, mut updates) = page.look();
        page.show(&now);
        let unchanged = next(&mut updates);
        assert_eq!((&unchanged["nodes"], &unchanged["groups"]), (&Value::Null, &Value::Null));

        now.cluster.nodes[1].utilization = Some(Utilization { cpu: Some(Permille::percent(5)), ..Default::default() });
        now.cluster.nodes.remove(2);
        page.show(&now);
        let update = next(&mut updates);
        assert_eq!(update["nodes"].as_array().unwrap().len(), 1);
        let changed = &update["nodes"][0];
        assert_eq!((&changed["id"], &changed["use"][0]), (&Value::from(2), &Value::from(5)));
        assert_eq!((&changed["pods"], &changed["name"]), (&Value::Null, &Value::Null));
        assert_eq!(update["gone"], serde_json::json!([3]));
    }

    #[test]
    fn a_newcomer_sees_the_whole_and_then_the_changes_once() {
        let page = Page::new("test");
        page.show(&snapshot(2));
        page.tell(step("raises a from 1 to 2 instances"));
        let (full, mut updates) = page.look();
        let full: Value = serde_json::from_str(&full).unwrap();
        assert_eq!(full["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(full["steps"][0]["what"], "raises a from 1 to 2 instances");
        assert_eq!(full["full"]["last"][0]["level"], 3);
        assert!(updates.try_recv().is_err());
        page.tell(step("another"));
        assert_eq!(next(&mut updates)["steps"][0]["what"], "another");
    }

    #[test]
    fn history_is_bounded_and_still_covers_everything() {
        let page = Page::new("test");
        let mut now = snapshot(1);
        for second in 0..5_000 {
            now.now = Instant::from_millis(second * 1_000);
            page.show(&now);
            page.tell(step("again"));
        }
        let state = page.state();
        assert!(state.points.len() <= POINTS && state.points.len() > POINTS / 3, "{}", state.points.len());
        assert_eq!((state.points[0].0, state.steps.len()), (0, STEPS));
    }

    /// Prints the sizes.
    #[test]
    fn a_thousand_nodes_are_a_small_payload() {
        let page = Page::new("test");
        let mut now = snapshot(1000);
        page.show(&now);
        let (full, mut updates) = page.look();
        // What a second brings: every node's use moves, one in a hundred gets or loses a pod.
        for (number, node) in now.cluster.nodes.iter_mut().enumerate() {
            let cpu = Some(Permille::percent((number % 100) as u16));
            node.utilization = Some(Utilization { cpu, ..Utilization::default() });
            if number % 100 == 0 {
                node.pods.pop();
            }
        }
        page.show(&now);
        let Ok(News::Update(all)) = updates.try_recv() else { panic!("an update was due") };
        for node in now.cluster.nodes.iter_mut().step_by(20) {
            node.utilization = Some(Utilization { cpu: Some(Permille::percent(33)), ..Utilization::default() });
        }
        page.show(&now);
        let Ok(News::Update(typical)) = updates.try_recv() else { panic!("an update was due") };
        println!(
            "1000 nodes with 8 pods each: full {} B, all nodes' use moved {} B, 50 nodes' use moved {} B",
            full.len(),
            all.len(),
            typical.len()
        );
        assert!(full.len() < 1_000_000 && all.len() < 100_000 && typical.len() < 5_000);
    }
}
