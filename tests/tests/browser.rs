//! The live page in a real Chromium: what it shows, what it announces, how it takes keys, hostile names and a server
//! that goes away. Pictures of it are left in `target/page`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::time::Duration;

use ebb_core::classify::{Class, GpuUse, Missing, Signal, Utilization};
use ebb_core::fleet::Fleet;
use ebb_core::price::{Cost, Dollars};
use ebb_core::ray::Problem;
use ebb_core::reason::{Obstacle, Reason};
use ebb_core::resources::Resources;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_core::view::{Cluster, Group, Hpa, Level, Node, Pod, RayCluster, Snapshot, Step, Waiting, WorkerGroup};
use ebb_page::Page;
use ebb_sim::{Options, simulate, soak};
use ebb_tests::{Browser, key};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const NOW: u64 = 1_767_603_600_000;

/// A server of the page whose connections end with it, as with its process.
struct Served {
    runtime: Option<Runtime>,
    address: String,
}

impl Served {
    async fn start(page: &Page, address: &str) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let router = page.router();
        runtime.spawn(async move { axum::serve(TcpListener::from_std(listener).unwrap(), router).await });
        Self { runtime: Some(runtime), address }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn picture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/page").join(format!("{name}.png"))
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(NOW + seconds * 1000)
}

fn resources(texts: &[(&str, &str)]) -> Resources {
    Resources::from_texts(texts.iter().copied()).unwrap()
}

fn pod(name: &str, cpu: &str, daemon: bool) -> Pod {
    Pod { name: name.into(), daemon, terminating: false, requests: resources(&[("cpu", cpu), ("memory", "1Gi")]) }
}

fn node(name: &str, group: &str, class: Class, cpu: u16) -> Node {
    Node {
        name: name.into(),
        uid: name.into(),
        group: Some(group.into()),
        ready: true,
        unschedulable: false,
        draining: false,
        drained: false,
        class: Some(class),
        gpu_waste: None,
        idle_ray_only: None,
        ray_workers: Vec::new(),
        stays: None,
        utilization: Some(Utilization {
            cpu: Some(Permille::percent(cpu)),
            memory: Some(Permille::percent(35)),
            ..Utilization::default()
        }),
        allocatable: resources(&[("cpu", "3920m"), ("memory", "14Gi")]),
        requested: resources(&[("cpu", "2500m"), ("memory", "6Gi")]),
        pods: vec![pod("kube-system/aws-node", "50m", true), pod("training/worker-1", "1500m", false)],
    }
}

fn group(name: &str, instance_type: &str, max: u32, instances: u32) -> Group {
    let name = name.to_owned();
    Group {
        name,
        instance_type: instance_type.to_owned(),
        observed: true,
        min: 0,
        max,
        desired: Some(instances),
        instances,
        failing: None,
    }
}

/// One of each that there can be.
fn snapshot() -> Snapshot {
    let busy = Class::Busy { since: at(0), signal: Signal::Cpu };
    let gpu = Node {
        allocatable: resources(&[("cpu", "3920m"), ("memory", "14Gi"), ("nvidia.com/gpu", "1")]),
        gpu_waste: None,
        utilization: Some(Utilization {
            cpu: Some(Permille::percent(20)),
            gpu: GpuUse::Busy(Permille::percent(88)),
            ..Utilization::default()
        }),
        ..node("gpu-1", "gpu-workers", Class::Busy { since: at(0), signal: Signal::Gpu }, 20)
    };
    let no_group_fits = Reason::NoGroupFits { groups: vec![("gpu-workers".into(), Obstacle::Maximum(4))] };
    let waiting = Waiting {
        pod: "training/worker-9".into(),
        since: at(10),
        requests: resources(&[("cpu", "3"), ("memory", "8Gi")]),
        because: Some(no_group_fits),
    };
    let history = Class::Unknown { since: at(0), missing: Missing::History };
    let nodes = vec![
        node("cpu-1", "cpu-workers", busy, 81),
        node("cpu-2", "cpu-workers", Class::Idle { since: at(0) }, 4),
        node("cpu-3", "cpu-workers", history, 0),
        gpu,
    ];
    let groups = vec![group("cpu-workers", "m5.xlarge", 10, 3), group("gpu-workers", "g4dn.xlarge", 4, 1)];
    Snapshot {
        now: at(90),
        cluster: Cluster { leading: true, synced: true, groups, nodes, waiting: vec![waiting], ray: vec![] },
        ray: Vec::new(),
        hpas: Vec::new(),
        cost: Cost { node_seconds: 360, total: None, per_hour: Some(Dollars::from_micros(1_102_000)) },
    }
}

fn decision(what: &str, because: &str) -> Step {
    Step { at: at(90), level: Level::NodeAutoscaler, what: what.into(), because: because.into() }
}

async fn shown(page: &Page) -> (Served, Browser) {
    let served = Served::start(page, "127.0.0.1:0").await;
    let browser = Browser::start().await;
    browser.resize(1440, 1000).await;
    browser.open(&served.url()).await;
    browser.until("document.querySelectorAll('.node').length > 0").await;
    (served, browser)
}

fn tile(name: &str) -> String {
    format!("document.querySelector('.node[title=\"{name}\"]')")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_cluster_and_follows_it() {
    let page = Page::new("test");
    page.show(&snapshot());
    let (_served, browser) = shown(&page).await;
    let text = browser.value("document.body.innerText").await.to_string();
    for words in [
        "cpu-workers",
        "g4dn.xlarge",
        "3 of 3 desired",
        "busy: CPU",
        "busy: GPU",
        "unknown: just started",
        "training/worker-9",
        "gpu-workers: at its maximum of 4",
        "not observed",
        "$1.10",
        "leading",
    ] {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }
    assert_eq!(browser.value(&format!("{}.querySelectorAll('.pod').length", tile("cpu-1"))).await, 2);
    // An unknown price is not shown as zero.
    assert_eq!(browser.value("document.getElementById('total').textContent").await, "unknown");

    let mut next = snapshot();
    next.cluster.nodes[1].draining = true;
    next.cluster.nodes[1].unschedulable = true;
    next.cluster.nodes.remove(2);
    next.cluster.waiting.clear();
    page.show(&next);
    browser.until(&format!("{}.dataset.is === 'draining'", tile("cpu-2"))).await;
    browser.until(&format!("{}.innerText.includes('draining')", tile("cpu-2"))).await;
    browser.until(&format!("{} === null", tile("cpu-3"))).await;
    browser.until("!document.getElementById('waiting-none').hidden").await;

    // On a real cluster Ray's heads are all that tells of Ray.
    let cluster = |name: &str, waiting, problem: Option<Problem>| RayCluster {
        name: name.into(),
        readable: problem.is_none(),
        problem,
        read_at: None,
        waiting,
        anticipated: 3,
        without_object: false,
        groups: Vec::new(),
    };
    next.ray.clear();
    next.cluster.ray = vec![cluster("ml/train", Some(19), None), cluster("ml/tune", None, Some(Problem::Unreachable))];
    page.show(&next);
    let first = "document.getElementById('flow').children[0].innerText";
    browser.until(&format!("{first}.includes('19 requests waiting; ml/tune: its GCS cannot be reached')")).await;
    let second = "document.getElementById('flow').children[1].innerText";
    browser.until(&format!("{second}.includes('6 workers needed that are no pods yet')")).await;
    browser.screenshot(&picture("ray")).await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_lights_its_level_is_announced_and_can_be_found() {
    let page = Page::new("test");
    page.show(&snapshot());
    let (_served, browser) = shown(&page).await;
    page.tell(decision("raises cpu-workers from 3 to 4 instances", "pod training/worker-9 unschedulable for 30s"));
    browser.until("document.querySelectorAll('.level')[3].dataset.lit !== undefined").await;
    assert_eq!(browser.value("document.querySelectorAll('.level[data-lit]').length").await, 1);
    let announced = "document.querySelector('[aria-live=polite]').textContent";
    browser.until(&format!("{announced}.includes('raises cpu-workers from 3 to 4')")).await;
    browser.until("document.getElementById('steps').innerText.includes('unschedulable for 30s')").await;

    page.tell(Step { level: Level::Ray, ..decision("asks for 5 workers", "") });
    browser.until("document.querySelectorAll('#steps li').length === 2").await;
    browser.value("document.getElementById('text').focus()").await;
    for letter in ["r", "a", "i", "s", "e", "s"] {
        browser.press(letter).await;
    }
    browser.until("document.querySelectorAll('#steps li').length === 1").await;
    // It does not stay lit.
    browser.until("document.querySelectorAll('.level[data-lit]').length === 0").await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_reach_a_node_and_open_its_details() {
    let page = Page::new("test");
    page.show(&snapshot());
    let (_served, browser) = shown(&page).await;
    let focused = "document.activeElement.title";
    for _ in 0..10 {
        if browser.value(focused).await == "cpu-1" {
            break;
        }
        browser.press(key::TAB).await;
    }
    assert_eq!(browser.value(focused).await, "cpu-1");
    browser.press(key::RIGHT).await;
    assert_eq!(browser.value(focused).await, "cpu-2");
    browser.press(key::DOWN).await;
    assert_eq!(browser.value(focused).await, "gpu-1");
    browser.press(key::ENTER).await;
    browser.until("document.getElementById('details').innerText.includes('training/worker-1')").await;
    browser.press(key::ESCAPE).await;
    browser.until("document.getElementById('details').hidden").await;
    assert_eq!(browser.value(focused).await, "gpu-1");
    // What a screen reader has to go by.
    assert_eq!(browser.value("document.querySelectorAll('main, header, h1, [role=search]').length").await, 4);
    let label = browser.value("document.activeElement.getAttribute('aria-label')").await;
    assert_eq!(label, "gpu-1, busy: GPU, 1 pod besides daemons");
    let unnamed = "[...document.querySelectorAll('section')].filter(s => !s.getAttribute('aria-labelledby')).length";
    assert_eq!(browser.value(unnamed).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_stay_text() {
    let hostile = r#"<img src=x onerror="document.title='owned'">"#;
    let mut snapshot = snapshot();
    let node = &mut snapshot.cluster.nodes[0];
    (node.name, node.pods[1].name) = (hostile.into(), hostile.into());
    snapshot.cluster.groups[0].instance_type = hostile.into();
    snapshot.cluster.waiting[0].pod = hostile.into();
    let page = Page::new(hostile);
    page.show(&snapshot);
    let (_served, browser) = shown(&page).await;
    page.tell(decision(hostile, hostile));
    browser.until("document.getElementById('steps').innerText.includes('<img')").await;
    browser.value("document.querySelector('.node').click()").await;
    browser.until("document.getElementById('details').innerText.includes('<img')").await;
    assert_eq!(browser.value("document.images.length").await, 1); // Our own icon.
    assert_eq!(browser.value("document.title").await, "Ebb");
    assert_eq!(browser.console().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_is_shown_and_come_back_to() {
    let page = Page::new("test");
    page.show(&snapshot());
    let (served, browser) = shown(&page).await;
    browser.until("document.getElementById('lost').hidden").await;
    let address = served.address.clone();
    drop(served);
    browser.until("!document.getElementById('lost').hidden").await;
    // Another process, which knows other nodes.
    let page = Page::new("test");
    let mut other = snapshot();
    other.cluster.nodes.truncate(1);
    page.show(&other);
    let _served = Served::start(&page, &address).await;
    browser.until("document.getElementById('lost').hidden").await;
    browser.until("document.querySelectorAll('.node').length === 1").await;
}

/// Leaves the pictures, and looks for what does not fit its window.
#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_run_fits_every_window_in_dark_and_light() {
    let page = Page::new("Simulated run");
    let scenario = soak::scenario(11);
    let policy = scenario.policy.clone();
    let options = Options { seed: 11, snapshot_every: Some(Duration::from_secs(15)), faults: None };
    let run = simulate(&scenario, &options, &|| Box::new(Fleet::new(policy.clone()))).unwrap();
    // Up to when there is most to see.
    let sight = |snapshot: &Snapshot| (snapshot.cluster.nodes.len(), snapshot.cluster.waiting.len());
    let peak = run.snapshots.iter().max_by_key(|snapshot| sight(snapshot)).unwrap().now;
    run.snapshots.iter().take_while(|snapshot| snapshot.now <= peak).for_each(|snapshot| page.show(snapshot));
    let (_served, browser) = shown(&page).await;
    run.steps.iter().take_while(|step| step.at <= peak).for_each(|step| page.tell(step.clone()));
    browser.until("document.querySelectorAll('#steps li').length > 0").await;
    browser.value("document.querySelector('.node').click()").await;
    for (name, scheme, width, height) in
        [("light", "light", 1440, 1100), ("dark", "dark", 1440, 1100), ("narrow", "light", 390, 1400)]
    {
        browser.resize(width, height).await;
        browser.prefer(scheme).await;
        browser.until(&format!("matchMedia('(prefers-color-scheme: {scheme})').matches")).await;
        browser
            .until("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
            .await;
        browser.until("document.documentElement.scrollWidth <= innerWidth").await;
        if name == "narrow" {
            browser.value("document.getElementById('close').click()").await;
        }
        browser.screenshot(&picture(name)).await;
    }
    assert_eq!(browser.console().await, Vec::<String>::new());
}

/// Prints how smooth it is; that depends on the machine, so it is not asserted.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_nodes_are_drawn_and_followed() {
    let mut snapshot = snapshot();
    let busy = Class::Busy { since: at(0), signal: Signal::Cpu };
    snapshot.cluster.groups[0].max = 1200;
    snapshot.cluster.nodes = (0..1000)
        .map(|number| {
            let class = if number % 7 == 0 { Class::Idle { since: at(0) } } else { busy };
            let group = if number % 10 == 0 { "gpu-workers" } else { "cpu-workers" };
            let name = format!("ip-10-0-{}-{}.ec2.internal", number / 250, number % 250);
            Node { draining: number % 97 == 0, ..node(&name, group, class, (number % 100) as u16) }
        })
        .collect();
    let worker = |queued| WorkerGroup {
        name: "ray".into(),
        tasks_queued: queued,
        tasks_running: 900,
        wanted: 1000,
        workers: 990,
    };
    let hpa = Hpa { name: "ray".into(), current: 990, desired: 1000, cpu_percent: Some(84), memory_percent: None };
    snapshot.hpas = vec![hpa];
    let page = Page::new("A thousand nodes");
    page.show(&snapshot);
    let (_served, browser) = shown(&page).await;
    browser.until("document.querySelectorAll('.node').length === 1000").await;
    let measure = "(() => { window.frames_ms = []; let last = performance.now(); const next = now => { \
                   frames_ms.push(now - last); last = now; requestAnimationFrame(next); }; \
                   requestAnimationFrame(next); return true; })()";
    browser.until(measure).await;
    for round in 1..=40_u64 {
        snapshot.now = at(90 + round);
        snapshot.ray = vec![worker((round * 13 % 170) as u32)];
        for (number, node) in (0_u64..).zip(&mut snapshot.cluster.nodes) {
            let cpu = Permille::percent(((number * 7 + round * 3) % 100) as u16);
            node.utilization = Some(Utilization { cpu: Some(cpu), ..Utilization::default() });
        }
        page.show(&snapshot);
        tokio::time::sleep(Duration::from_millis(200)).await; // Five times as often as the coordinator looks.
    }
    let frames = browser.value("frames_ms.slice(1).sort((a, b) => a - b)").await;
    let frames: Vec<f64> = serde_json::from_value(frames).unwrap();
    let of = |percent: usize| frames[frames.len() * percent / 100];
    println!(
        "1000 nodes, all moving 5 times a second: {} frames, median {:.1} ms, 95th percentile {:.1} ms, longest {:.1} ms",
        frames.len(),
        of(50),
        of(95),
        frames[frames.len() - 1]
    );
    let expected = "document.querySelector('#clock').title === new Date(1767603600000 + 130000).toISOString()";
    browser.until(expected).await;
    browser.screenshot(&picture("thousand")).await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}
