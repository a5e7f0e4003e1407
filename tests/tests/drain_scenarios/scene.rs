//! A case as it is played: what begins the drain, what happens meanwhile, how it ends, and that all is undone after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::drain;
use ebb_core::intent::{INTENT_ANNOTATION, Phase};
use ebb_core::time::parse_duration;
use ebb_tests::{Drains, Fault, MetadataMock, Program, Proxy, Seen, free_port, http};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::case::{Case, End, Then};
use super::{stage, verdict};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Instance metadata that tells of nothing.
const NOTHING: [&str; 5] = ["spot", "--mock-delay-sec", "86400", "--rebalance-delay-sec", "86400"];

/// The case for this node, now: `$NODE`, and the moments `$NOW`, `$SOON` in two minutes, and `$LATER` in two hours.
pub(super) fn read(node: &str, case: &Value) -> Case {
    let at = |seconds| (ebb_tests::now() + Duration::from_secs(seconds)).to_string();
    let text = case.to_string().replace("$NODE", node);
    let text = text.replace("$NOW", &at(0)).replace("$SOON", &at(120)).replace("$LATER", &at(7200));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", case["name"]))
}

pub(super) struct Scene<'a> {
    pub(super) drains: &'a Drains,
    pub(super) node: &'a str,
    pub(super) case: &'a Case,
    /// What its pods are called, by UID.
    pub(super) names: BTreeMap<String, String>,
    pub(super) proxy: Proxy,
    token: String,
    agent: Option<Program>,
    /// Where the agent serves.
    port: u16,
    metadata: Option<MetadataMock>,
}

pub(super) async fn play(drains: &Drains, node: &str, case: &Case) -> Result<(), String> {
    stage::set(drains, node, case).await;
    let found = drain::Node::from(&drains.node(node).await);
    let proxy = Proxy::start(drains.lab.anonymous_client().await, Arc::new(|_: &Seen| Fault::None)).await;
    let mut scene = Scene {
        drains,
        node,
        case,
        names: BTreeMap::new(),
        proxy,
        token: drains.token(node).await,
        agent: None,
        port: free_port(),
        metadata: None,
    };
    scene.learn_names().await;
    if let Some(args) = &case.metadata {
        scene.tell(args).await;
    }
    scene.start_agent();
    let began = Monotonic::now();
    match (&case.words, &case.metadata) {
        (Some(words), _) => drains.patch(node, &json!({"metadata": {"annotations": {INTENT_ANNOTATION: words}}})).await,
        (None, None) => drains.ask(node, Some(&case.intent.intent())).await,
        (None, Some(_)) => {}
    }
    for then in &case.then {
        scene.see(then).await?;
        scene.act(then).await;
    }
    let is = scene.end(began).await?;
    verdict::check(&scene, &is).await?;
    scene.undo(&found).await
}

impl Scene<'_> {
    async fn learn_names(&mut self) {
        for pod in self.drains.pods_on(self.node).await {
            self.names.insert(pod.uid().unwrap(), self.called(&pod));
        }
    }

    /// What the case calls a pod: what is made for it has names of its own.
    pub(super) fn called(&self, pod: &Pod) -> String {
        let name = pod.name_any();
        let daemon = self.case.daemon.iter().map(|_| "daemon");
        let mut known = self.case.wait_for.iter().map(String::as_str).chain(daemon);
        known.find(|known| name.starts_with(*known)).map_or(name.clone(), str::to_owned)
    }

    fn start_agent(&mut self) {
        let mut flags = self.case.flags.clone();
        flags.extend(["--listen".to_owned(), format!("127.0.0.1:{}", self.port)]);
        if let Some(mock) = &self.metadata {
            let endpoint = format!("http://127.0.0.1:{}", mock.port);
            flags.extend(["--imds-endpoint".to_owned(), endpoint, "--imds-interval".to_owned(), "1s".to_owned()]);
        }
        self.agent = Some(self.drains.start_agent(self.node, &self.token, &self.proxy.url, &flags));
    }

    /// Instance metadata, from now on.
    async fn tell(&mut self, args: &[String]) {
        let port = self.metadata.take().map_or_else(free_port, |before| {
            before.program.kill();
            before.port
        });
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let args = if args.is_empty() { &NOTHING[..] } else { &args };
        let dir: PathBuf = self.drains.lab.dir.join("conf").join(format!("metadata-{}", self.node));
        std::fs::create_dir_all(&dir).unwrap();
        self.metadata = Some(MetadataMock::start(&dir, port, args).await);
    }

    /// Waits until all that is to be seen is.
    async fn see(&mut self, then: &Then) -> Result<(), String> {
        if let Some(pause) = &then.after {
            tokio::time::sleep(parse_duration(pause).unwrap()).await;
        }
        let began = Monotonic::now();
        while let Some(other) = self.mismatch(then).await {
            if self.granted().iter().any(|seen| !self.names.contains_key(seen.uid())) {
                self.learn_names().await;
            }
            if began.elapsed() > parse_duration(&then.within).unwrap() {
                return Err(format!("waited for {then:?}: {other}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn mismatch(&self, then: &Then) -> Option<String> {
        let is = self.drains.node(self.node).await;
        let known = drain::Node::from(&is);
        if then.holds.as_ref().is_some_and(|words| !message(&is).contains(words)) {
            return Some(format!("it says: {}", message(&is)));
        }
        if then.cordoned.is_some_and(|expected| known.unschedulable != expected) {
            return Some(format!("cordoned: {}", known.unschedulable));
        }
        if then.excluded.is_some_and(|expected| known.excluded != expected) {
            return Some(format!("out of load balancers: {}", known.excluded));
        }
        let asked = self.asked();
        if then.asked.as_ref().is_some_and(|expected| asked != *expected) {
            return Some(format!("asked to go: {asked:?}"));
        }
        if let Some(line) = &then.metrics {
            let address = format!("127.0.0.1:{}", self.port);
            if tokio::net::TcpStream::connect(&address).await.is_err() {
                return Some("the agent serves nothing yet".into());
            }
            let page = http(&address, "GET", "/metrics", &[], "").await.1;
            if !page.lines().any(|of| of.strip_suffix(".0").unwrap_or(of) == line) {
                let metric = line.split(['{', ' ']).next().unwrap();
                let others: Vec<_> = page.lines().filter(|of| of.starts_with(metric)).collect();
                return Some(format!("the agent shows {others:?}"));
            }
        }
        None
    }

    async fn act(&mut self, then: &Then) {
        let Self { drains, node, .. } = *self;
        if then.cancel {
            drains.ask(node, None).await;
        }
        if let Some(name) = &then.finish {
            let pods = drains.pods_on(node).await;
            let pod = pods.iter().find(|pod| self.called(pod) == *name).unwrap();
            stage::finish(drains, node, &pod.name_any(), "Succeeded").await;
        }
        if let Some(pod) = &then.release {
            stage::release(drains, node, pod).await;
        }
        if !then.pods.is_empty() {
            stage::make_pods(drains, node, &then.pods).await;
            self.learn_names().await;
        }
        stage::patch(drains, node, &then.node).await;
        if let Some(line) = &then.kubectl {
            stage::kubectl(drains, node, line).await;
        }
        if then.restart {
            self.agent.take().unwrap().kill();
        }
        if let Some(args) = &then.metadata {
            self.tell(args).await;
        }
        if then.restart {
            self.start_agent();
        }
    }

    /// What was asked of the API server for pods, and granted.
    pub(super) fn granted(&self) -> Vec<Seen> {
        let is_one = |seen: &Seen| (seen.is_eviction() || seen.is_deletion()) && !seen.is_dry_run();
        let granted = |seen: &Seen| seen.status.is_some_and(|status| status < 300);
        self.proxy.seen().into_iter().filter(|seen| is_one(seen) && granted(seen)).collect()
    }

    /// Which pods were asked to go, in their order.
    pub(super) fn asked(&self) -> Vec<String> {
        self.granted().iter().map(|seen| self.names.get(seen.uid()).cloned().unwrap_or_default()).collect()
    }

    async fn end(&self, began: Monotonic) -> Result<Node, String> {
        let latest = self.case.intent.duration() + PATIENCE;
        let is = loop {
            let is = self.drains.node(self.node).await;
            if has_ended(&drain::Node::from(&is), self.case.ends) {
                break is;
            }
            if began.elapsed() > latest {
                return Err(format!("no such end: {:?}, {}", drain::Node::from(&is), message(&is)));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let took = began.elapsed();
        match &self.case.takes {
            Some(least) if took < parse_duration(least).unwrap() => Err(format!("it took no longer than {took:?}")),
            _ => Ok(is),
        }
    }

    /// What was wanted is wanted no more.
    async fn undo(&mut self, found: &drain::Node) -> Result<(), String> {
        match self.metadata {
            Some(_) => self.tell(&[]).await,
            None => self.drains.ask(self.node, None).await,
        }
        let began = Monotonic::now();
        loop {
            let is = drain::Node::from(&self.drains.node(self.node).await);
            // Its annotations and volumes are other people's.
            let expected = drain::Node {
                unschedulable: self.case.still_cordoned,
                blockers: is.blockers.clone(),
                attached: is.attached.clone(),
                in_use: is.in_use.clone(),
                ..found.clone()
            };
            if is == expected {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it is not as it was found, {expected:?}, but {is:?}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn has_ended(node: &drain::Node, end: End) -> bool {
    let phase = node.progress.as_ref().map(|progress| progress.phase);
    let rests = !node.planned && !node.draining && !node.drained;
    match end {
        End::Cancelled | End::Untouched => node.intent.is_none() && phase.is_none() && rests,
        End::Drained => phase == Some(Phase::Drained) && node.drained && !node.draining,
        End::Failed => phase == Some(Phase::Failed) && rests,
    }
}

pub(super) fn message(node: &Node) -> String {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut messages = conditions.filter(|it| it.type_ == "DrainInProgress").filter_map(|it| it.message.clone());
    messages.next().unwrap_or_default()
}
