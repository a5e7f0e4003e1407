//! Drains under faults by chance, by seed: real agents on a real API server with the real disruption controller, between
//! them a proxy that answers 409, 429, 500, 504, loses answers and cuts watches, and a hand that kills the agent around
//! its writes. What must hold whatever happens is checked of every request and every version of the Node.
//!
//! `EBB_TEST_SEEDS` and `EBB_TEST_SEED`: how many seeds, and the first.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_core::drain;
use ebb_core::intent::{Intent, Permits, Phase, Trigger};
use ebb_tests::{Drains, Fault, PLOT, Proxy, Seen};
use futures::StreamExt;
use hyper::Method;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg32;
use serde_json::json;

/// Seeds at the same time.
const AT_ONCE: usize = 8;
/// From when on nothing fails any more, so that an end can come.
const CALM: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(75);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a seed means.
#[derive(Clone, Debug)]
struct Trial {
    node: String,
    by: Trigger,
    evict: bool,
    pods: u32,
    /// How many pods a PodDisruptionBudget wants healthy; the node's are all there are at first.
    healthy: Option<u32>,
    /// Whether another node takes the pods.
    spare: bool,
    /// Somebody else cordoned it before.
    cordoned: bool,
    meddling: Option<(Meddling, Duration)>,
    hook: Option<&'static str>,
    /// Of a thousand requests, how many go wrong.
    faults: u32,
    /// Of a thousand writes, around how many the agent is killed.
    kills: u32,
}

/// What a person does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meddling {
    Cancel,
    Uncordon,
    /// Another intent in the place of the first.
    Replace,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut random = Pcg32::seed_from_u64(seed);
        let pods = random.random_range(0..6);
        let meddlings = [Meddling::Cancel, Meddling::Uncordon, Meddling::Replace];
        let meddling = random.random_bool(0.4).then(|| {
            let after = Duration::from_millis(random.random_range(0..15_000));
            (meddlings[random.random_range(0..meddlings.len())], after)
        });
        // Done, later once, no, broken.
        let hooks = ["exit 0", "test -e $0.once && exit 0; touch $0.once; exit 75", "exit 99", "exit 1"];
        Self {
            node: format!("seed-{seed}"),
            by: [Trigger::Coordinator, Trigger::Person, Trigger::SpotInterruption][random.random_range(0..3)],
            evict: random.random_bool(0.9),
            pods,
            healthy: random.random_bool(0.5).then(|| random.random_range(0..=pods)),
            spare: random.random_bool(0.7),
            cordoned: random.random_bool(0.2),
            meddling,
            hook: random.random_bool(0.3).then(|| hooks[random.random_range(0..hooks.len())]),
            faults: random.random_range(0..300),
            kills: random.random_range(0..500),
        }
    }

    fn intent(&self, id: &str) -> Intent {
        let now = ebb_tests::now();
        Intent {
            id: id.to_owned(),
            reason: "a test".into(),
            requested_at: now,
            deadline: now + DEADLINE,
            evict: self.evict,
            by: self.by,
            awaits_turn: false,
            permits: Permits::default(),
        }
    }

    fn objects(&self) -> serde_json::Value {
        let Self { node, pods, healthy, .. } = self;
        let labels = json!({"app": node});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "work", "namespace": node},
            "spec": {"replicas": pods, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"nodeSelector": {PLOT: node}, "containers": [{"name": "work", "image": "work"}],
                    // Whoever cordons the node before, the pods come first.
                    "tolerations": []},
            }},
        });
        let budget = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "work", "namespace": node},
            "spec": {"minAvailable": healthy, "selector": {"matchLabels": labels}},
        });
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": node}});
        let items: Vec<_> =
            [Some(namespace), Some(deployment), healthy.map(|_| budget)].into_iter().flatten().collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }
}

/// Every version of every node that the API server has shown.
#[derive(Clone, Default)]
struct History(Arc<Mutex<BTreeMap<String, Vec<drain::Node>>>>);

impl History {
    fn watch(client: Client) -> Self {
        let history = Self::default();
        let told = history.clone();
        tokio::spawn(async move {
            let nodes = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff();
            let mut nodes = Box::pin(nodes.applied_objects());
            while let Some(node) = nodes.next().await {
                if let Ok(node) = node {
                    let read = drain::Node::from(&node);
                    told.0.lock().unwrap().entry(node.name_any()).or_default().push(read);
                }
            }
        });
        history
    }

    fn of(&self, node: &str) -> Vec<drain::Node> {
        self.0.lock().unwrap().get(node).cloned().unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_a_drain_comes_to_an_end_and_loses_nothing() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (first, seeds) = (number("EBB_TEST_SEED", 1), number("EBB_TEST_SEEDS", 24));
    let drains = Drains::up().await;
    let history = History::watch(drains.client.clone());
    let trials = (first..first + seeds).map(|seed| {
        let (drains, history) = (&drains, history.clone());
        async move {
            let trial = Trial::new(seed);
            let end = run(drains, &history, &trial, seed).await;
            println!("seed {seed}: {}", end.as_ref().map_or_else(|why| format!("{why}\n{trial:#?}"), Clone::clone));
            end.is_ok()
        }
    });
    let ends: Vec<bool> = futures::stream::iter(trials).buffer_unordered(AT_ONCE).collect().await;
    let failed = ends.iter().filter(|ok| !**ok).count();
    assert_eq!(failed, 0, "of {seeds} seeds from {first} on, {failed} failed");
}

/// One seed, to its end; `Err`: what did not hold.
async fn run(drains: &Drains, history: &History, trial: &Trial, seed: u64) -> Result<String, String> {
    let node = trial.node.as_str();
    drains.make_nodes(&[node.to_owned()], None).await;
    drains.lab.apply(&trial.objects().to_string()).await;
    let pods = usize::try_from(trial.pods).unwrap();
    drains
        .lab
        .wait_until("the pods to run", PATIENCE, async || {
            let work = drains.work_on(node).await;
            let runs = |phase: Option<&str>| phase == Some("Running");
            work.iter().filter(|pod| runs(pod.status.as_ref().and_then(|it| it.phase.as_deref()))).count() == pods
        })
        .await;
    if trial.spare {
        drains.make_nodes(&[format!("{node}-spare")], Some(node)).await;
    }
    if trial.cordoned {
        drains.patch(node, &json!({"spec": {"unschedulable": true}})).await;
    }
    let found = drain::Node::from(&drains.node(node).await);
    let mut there: BTreeSet<String> = drains.work_on(node).await.iter().filter_map(ResourceExt::uid).collect();

    let mut agent = Agent::new(drains, trial, seed).await;
    drains.ask(node, Some(&trial.intent("first"))).await;
    let began = std::time::Instant::now();
    let mut meddling = trial.meddling;
    let latest = DEADLINE + PATIENCE;
    let end = loop {
        agent.tend(drains).await;
        if let Some((what, after)) = meddling
            && began.elapsed() > after
        {
            meddling = None;
            match what {
                Meddling::Cancel => drains.ask(node, None).await,
                Meddling::Replace => drains.ask(node, Some(&trial.intent("second"))).await,
                Meddling::Uncordon => drains.patch(node, &json!({"spec": {"unschedulable": null}})).await,
            }
        }
        if matches!(trial.meddling, Some((Meddling::Uncordon, _))) {
            // New ones come then, and what the agent's broken watches show of the node may be old.
            there.extend(drains.work_on(node).await.iter().filter_map(ResourceExt::uid));
        }
        let is = drain::Node::from(&drains.node(node).await);
        if is.drained && !is.unschedulable && is.progress.is_some() {
            // Somebody has just uncordoned it; that ends the drain.
        } else if is.drained {
            let left = drains.work_on(node).await;
            if !left.is_empty() {
                return Err(format!("drained with {} pods", left.len()));
            }
        }
        if meddling.is_none()
            && let Some(end) = ended(&is)
        {
            break end;
        }
        if began.elapsed() > latest {
            // One that is not planned goes on for as long as its node does.
            let unplanned = !trial.by.is_planned() && is.draining;
            let pods = drains.work_on(node).await.len();
            if unplanned && pods > 0 {
                break format!("still draining, {pods} pods are blocked");
            }
            return Err(format!("no end after {latest:?}: {is:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // And back: what the drain changed, and nothing else, is undone.
    drains.ask(node, None).await;
    let uncordoned = trial.meddling.is_some_and(|(what, _)| what == Meddling::Uncordon);
    let began = std::time::Instant::now();
    loop {
        agent.tend(drains).await;
        let is = drain::Node::from(&drains.node(node).await);
        let as_found = drain::Node { unschedulable: is.unschedulable, ..found.clone() } == is;
        if as_found && (is.unschedulable == found.unschedulable || (uncordoned && !is.unschedulable)) {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("it is not as it was found, which was {found:?}, but {is:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check_versions(&history.of(node), trial)?;
    ebb_tests::check_requests(&agent.proxy.seen(), node, &there, agent.kills > 0)?;
    if agent.proxy.seen().iter().any(Seen::is_deletion) {
        return Err("a pod was deleted past its budget, which nobody allowed".into());
    }
    let asked = agent.proxy.seen().len();
    drains.delete_node(node).await;
    Ok(format!("{end}; {asked} requests, killed {} times", agent.kills))
}

/// How it ended, if it has.
fn ended(node: &drain::Node) -> Option<String> {
    let phase = node.progress.as_ref().map(|progress| progress.phase);
    let rests = !node.planned && !node.draining && !node.drained;
    match (&node.intent, phase) {
        (None, None) if rests => Some("cancelled".into()),
        (Some(_), Some(Phase::Drained)) if node.drained && !node.draining => Some("drained".into()),
        (Some(_), Some(Phase::Failed)) if rests => Some("given up".into()),
        _ => None,
    }
}

fn check_versions(versions: &[drain::Node], trial: &Trial) -> Result<(), String> {
    for version in versions {
        let owned = version.progress.is_some() || trial.cordoned;
        if version.unschedulable && !owned {
            return Err(format!("a cordon without an owner: {version:?}"));
        }
        if version.draining && version.drained {
            return Err(format!("drained while draining: {version:?}"));
        }
    }
    Ok(())
}

/// The agent of a node, and what lies between it and the API server.
struct Agent {
    node: String,
    token: String,
    flags: Vec<String>,
    proxy: Proxy,
    program: Option<ebb_tests::Program>,
    /// Set by the proxy: kill it now.
    condemned: Arc<AtomicBool>,
    kills: u32,
}

impl Agent {
    async fn new(drains: &Drains, trial: &Trial, seed: u64) -> Self {
        let condemned = Arc::new(AtomicBool::new(false));
        let calm = std::time::Instant::now() + CALM;
        let random = Mutex::new(Pcg32::seed_from_u64(seed ^ 0xfa17));
        let (faults, kills, hand) = (trial.faults, trial.kills, Arc::clone(&condemned));
        let choose = move |seen: &Seen| {
            let mut random = random.lock().unwrap();
            if std::time::Instant::now() > calm {
                return Fault::None;
            }
            if seen.method != Method::GET && random.random_range(0..1000) < kills {
                hand.store(true, Ordering::Relaxed);
                // It dies before it has asked, or before it hears the answer.
                return if random.random_bool(0.5) { Fault::Refuse(500) } else { Fault::Delay(CALM) };
            }
            fault(seen, faults, &mut *random)
        };
        let mut flags = Vec::new();
        if let Some(script) = trial.hook {
            let phases = ["pre-cordon", "pre-drain", "post-drain"];
            let phase = phases[usize::try_from(seed).unwrap() % phases.len()];
            let folder = drains.lab.dir.join("conf").join(format!("hooks-{seed}"));
            let file = folder.join(format!("{phase}.d/hook"));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            flags = vec!["--hooks-dir".into(), folder.display().to_string()];
        }
        Self {
            node: trial.node.clone(),
            token: drains.token(&trial.node).await,
            flags,
            proxy: Proxy::start(drains.lab.anonymous_client().await, Arc::new(choose)).await,
            program: None,
            condemned,
            kills: 0,
        }
    }

    /// Kills it if its time has come, and starts it if it does not run.
    async fn tend(&mut self, drains: &Drains) {
        if self.condemned.swap(false, Ordering::Relaxed)
            && let Some(program) = self.program.take()
        {
            program.kill();
            self.kills += 1;
        }
        if self.program.is_none() {
            self.program = Some(drains.start_agent(&self.node, &self.token, &self.proxy.url, &self.flags));
        }
        assert!(
            self.program.as_mut().unwrap().is_running(),
            "the agent ended by itself: {}",
            drains.lab.diagnosis().await
        );
    }
}

fn fault(seen: &Seen, faults: u32, random: &mut impl Rng) -> Fault {
    let wrong = random.random_range(0..1000) < faults;
    if seen.is_watch() && random.random_range(0..1000) < faults * 2 {
        return Fault::Cut(Duration::from_millis(random.random_range(0..3000)));
    }
    if !wrong {
        return Fault::None;
    }
    let kinds = [Fault::Refuse(409), Fault::Refuse(429), Fault::Refuse(500), Fault::Refuse(504), Fault::LoseReply];
    match random.random_range(0..=kinds.len()) {
        slow if slow == kinds.len() => Fault::Delay(Duration::from_millis(random.random_range(0..4000))),
        kind => kinds[kind],
    }
}
