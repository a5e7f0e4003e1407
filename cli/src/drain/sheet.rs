//! What a drain would meet, printed for people: each pod with what becomes of it, the budgets' sums, and what stops it
//! with what to do about that.

use ebb_core::disruption::{Blocked, PodDisruptionBudget};
use ebb_core::kubernetes::{Controller, Pod};
use ebb_core::preflight::{Candidate, Fate, Obstacle, fate};
use ebb_core::reason::Pin;

use super::preview::{Preview, Previewed};
use crate::sheet::Align::{Left, Right};
use crate::sheet::Sheet;
use crate::text::width;

/// Also whether a drain of all of them could begin.
pub(super) fn text(preview: &Preview, sheet: &mut Sheet) -> (String, bool) {
    let stopped: Vec<_> = preview.nodes.iter().map(|node| obstacles(preview, node)).collect();
    for (node, stopped) in preview.nodes.iter().zip(&stopped) {
        let verdict = match stopped.len() {
            0 => "a drain could begin".to_owned(),
            1 => "a drain could not begin".to_owned(),
            number => format!("a drain could not begin, for {number} reasons"),
        };
        sheet.title(&format!("Node {}: {verdict}", node.name));
        if node.pods.is_empty() {
            sheet.line("no pod is on it");
        } else {
            let rows = node.pods.iter().map(|(candidate, answer)| {
                let (fate, pod) = (fate(candidate, &preview.intent, &preview.budgets, answer), &candidate.pod);
                vec![pod.full_name(), kind(pod).to_owned(), becomes(&fate, pod, preview).to_owned()]
            });
            sheet.table(&[("POD", Left), ("IS", Left), ("ON A DRAIN", Left)], &rows.collect::<Vec<_>>());
        }
    }
    budgets(preview, sheet);
    if stopped.iter().any(|node| !node.is_empty()) {
        sheet.title("What stops it (→ what to do)");
        let widest = stopped.iter().flatten().map(|stop| width(&stop.subject)).max().unwrap_or(0);
        for Stop { subject, why, advice } in stopped.iter().flatten() {
            sheet.advice(&format!("{subject:<widest$}"), why, advice);
        }
    }
    if !preview.notes.is_empty() {
        sheet.title("Not known");
        preview.notes.iter().for_each(|note| sheet.line(note));
    }
    (sheet.take(), stopped.iter().all(Vec::is_empty))
}

fn kind(pod: &Pod) -> &'static str {
    match pod.controller {
        Controller::DaemonSet => "a DaemonSet's",
        Controller::Node => "the node's own",
        Controller::Workload if pod.pin == Some(Pin::NotReplicated) => "without controller",
        Controller::Workload => "workload",
    }
}

fn becomes(fate: &Fate<'_>, pod: &Pod, preview: &Preview) -> &'static str {
    match fate {
        Fate::AwaitsEnd => "left to end by itself, as it asks for",
        Fate::Ending => "is terminating already",
        Fate::Evicted if pod.pin == Some(Pin::NotReplicated) => "evicted, and not made anew",
        Fate::Evicted if pod.pin == Some(Pin::LocalStorage) => "evicted, and what is in its local volumes is lost",
        Fate::Evicted if shares(pod, preview) => "evicted, in turn with others of its budget",
        Fate::Evicted => "evicted",
        Fate::Forced => "deleted shortly before the deadline, if its budget holds it for so long",
        Fate::Finished => "is over",
        Fate::Stays => "stays",
        Fate::Stopped(_) => "stops it",
    }
}

/// Whether a budget of the pod's lets fewer go at once than are to go.
fn shares(pod: &Pod, preview: &Preview) -> bool {
    let needed = preview.budgets.needed_by(std::iter::once(pod));
    needed
        .iter()
        .any(|(mine, _)| leaving(preview).iter().any(|(budget, pods)| budget == mine && *pods > budget.allowed))
}

/// What the pods that are to go need of each budget, on all nodes together.
fn leaving(preview: &Preview) -> Vec<(&PodDisruptionBudget, u32)> {
    let pods = preview.nodes.iter().flat_map(|node| &node.pods);
    let goes = |(pod, answer): &&(Candidate, _)| {
        let fate = fate(pod, &preview.intent, &preview.budgets, answer);
        matches!(fate, Fate::Evicted | Fate::Forced | Fate::Stopped(Obstacle::Budget(..)))
    };
    preview.budgets.needed_by(pods.filter(goes).map(|(candidate, _)| &candidate.pod))
}

fn budgets(preview: &Preview, sheet: &mut Sheet) {
    let leaving = leaving(preview);
    if leaving.is_empty() {
        return;
    }
    sheet.title("PodDisruptionBudgets");
    let head =
        [("BUDGET", Left), ("TO GO", Right), ("MAY GO NOW", Right), ("HEALTHY", Right), ("MUST BE", Right), ("", Left)];
    let row = |(budget, pods): &(&PodDisruptionBudget, u32)| {
        let verdict = match budget.allowed {
            0 => "none now",
            allowed if allowed < *pods => "in turn: the next when one is well elsewhere",
            _ => "enough",
        };
        vec![
            full_name(budget),
            pods.to_string(),
            budget.allowed.to_string(),
            budget.healthy.to_string(),
            budget.desired.to_string(),
            verdict.to_owned(),
        ]
    };
    sheet.table(&head, &leaving.iter().map(row).collect::<Vec<_>>());
}

struct Stop {
    subject: String,
    why: String,
    advice: String,
}

fn obstacles(preview: &Preview, node: &Previewed) -> Vec<Stop> {
    let stop = |subject: &str, why: String, advice: String| Stop { subject: subject.to_owned(), why, advice };
    let mut found = Vec::new();
    let name = &node.name;
    if let Some(stands) = &node.stands {
        let why = format!("{} asked for its drain already", stands.described());
        found.push(stop(name, why, "wait for its end, or put yours in its place with --replace".to_owned()));
    }
    if !node.has_agent {
        let why = "no agent of Ebb runs on it, and nobody else carries out a drain".to_owned();
        let advice = format!("see why: kubectl --namespace ebb get pods --field-selector spec.nodeName={name}");
        found.push(stop(name, why, advice));
    }
    for (candidate, answer) in &node.pods {
        if let Fate::Stopped(obstacle) = fate(candidate, &preview.intent, &preview.budgets, answer) {
            let (why, advice) = words(&obstacle);
            found.push(stop(&candidate.pod.full_name(), why, advice));
        }
    }
    found
}

/// Why, and what to do.
fn words(obstacle: &Obstacle<'_>) -> (String, String) {
    match obstacle {
        Obstacle::Pinned(pin) => (pin.to_string(), pinned(*pin).to_owned()),
        Obstacle::Budget(Blocked::Several(budgets), _) => {
            let names: Vec<_> = budgets.iter().map(|budget| budget.name.as_str()).collect();
            let why =
                format!("it is under several PodDisruptionBudgets ({}), which no eviction gets past", names.join(", "));
            (why, "let only one of their selectors match it".to_owned())
        }
        Obstacle::Budget(Blocked::Spent(budget), words) => {
            let numbers = || format!("{} pods are healthy, {} must be", budget.healthy, budget.desired);
            let words = words.clone().filter(|words| !words.is_empty()).unwrap_or_else(numbers);
            let why = format!("PodDisruptionBudget {} allows no eviction now: {words}", budget.name);
            let advice = if budget.healthy > budget.desired {
                "wait: its controller has yet to count"
            } else if budget.healthy < budget.desired {
                "make its other pods well first; for pods that never were, unhealthyPodEvictionPolicy: AlwaysAllow lets \
                 them go"
            } else {
                "run one replica more, or let the budget do with one less"
            };
            (why, advice.to_owned())
        }
        Obstacle::Refused(words) => {
            (format!("the API server refuses its eviction: {words}"), "ask whoever set that up".to_owned())
        }
    }
}

fn full_name(budget: &PodDisruptionBudget) -> String {
    format!("{}/{}", budget.namespace, budget.name)
}

fn pinned(pin: Pin) -> &'static str {
    match pin {
        Pin::DoNotDisrupt | Pin::NotSafeToEvict | Pin::OnCompletion => {
            "wait for its end, or take the annotation off the pod"
        }
        Pin::LocalStorage => "--delete-emptydir-data evicts it all the same, and what is in that volume is lost",
        Pin::NotReplicated => "--force evicts it all the same, and nobody makes it anew",
        Pin::System => "",
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::disruption::{Change, PodDisruptionBudgets};
    use ebb_core::intent::{Intent, Permits, Trigger};
    use ebb_core::preflight::Answer;
    use ebb_core::time::Instant;

    use super::super::want::Stands;
    use super::*;
    use crate::golden::is_golden;

    fn pod(name: &str, labels: &[(&str, &str)]) -> Pod {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Pod { namespace: "ml".into(), name: name.into(), labels, ..Pod::default() }
    }

    fn budgets(all: &[(&str, u32, u32, u32)]) -> PodDisruptionBudgets {
        let mut budgets = PodDisruptionBudgets::default();
        for (app, allowed, healthy, desired) in all {
            let selector = serde_json::json!([{"key": "app", "operator": "In", "values": [app]}]);
            let budget = serde_json::json!({"namespace": "ml", "name": app, "selector": selector, "allowed": allowed,
                "healthy": healthy, "desired": desired});
            budgets.apply(Change::Applied(serde_json::from_value(budget).unwrap()));
        }
        budgets
    }

    fn intent(by: Trigger, permits: Permits) -> Intent {
        let at = Instant::from_millis(1_795_867_200_000);
        let (id, reason) = ("d-1".to_owned(), "measured idle for 10m".to_owned());
        Intent { id, reason, requested_at: at, deadline: at, evict: true, by, awaits_turn: false, permits }
    }

    fn previewed(name: &str, pods: Vec<(Pod, Answer)>) -> Previewed {
        let pods = pods.into_iter().map(|(pod, answer)| (pod.into(), answer)).collect();
        Previewed { name: name.into(), stands: None, has_agent: true, pods }
    }

    fn one_node() -> Preview {
        let app = |name: &str, app: &str| pod(name, &[("app", app)]);
        let words = || Answer::Blocked("The disruption budget zk needs 3 healthy pods and has 3 currently".into());
        let pods = vec![
            (Pod { controller: Controller::DaemonSet, ..pod("cni-x7", &[]) }, Answer::Unknown),
            (Pod { pin: Some(Pin::NotReplicated), ..pod("notebook", &[]) }, Answer::Unknown),
            (Pod { pin: Some(Pin::LocalStorage), ..pod("cache-0", &[]) }, Answer::Unknown),
            (Pod { pin: Some(Pin::OnCompletion), ..pod("job-1", &[]) }, Answer::Unknown),
            (Pod { finished: true, ..pod("job-0", &[]) }, Answer::Unknown),
            (app("web-1", "web"), Answer::Allowed),
            (app("web-2", "web"), Answer::Allowed),
            (app("zk-0", "zk"), words()),
        ];
        Preview {
            nodes: vec![previewed("ip-10-0-0-7", pods)],
            budgets: budgets(&[("web", 1, 4, 3), ("zk", 0, 3, 3)]),
            intent: intent(Trigger::Person, Permits::default()),
            notes: Vec::new(),
        }
    }

    #[test]
    fn each_pod_has_its_fate_and_each_obstacle_its_way_out() {
        for columns in [80, 120] {
            let (printed, begins) = text(&one_node(), &mut Sheet::new(columns, false));
            assert!(!begins);
            is_golden(&printed, &format!("tests/golden/drain-dry-run-{columns}.txt"));
            assert!(printed.lines().all(|line| line.chars().count() <= columns), "{printed}");
        }
    }

    #[test]
    fn what_may_be_lost_and_what_goes_in_turn_stops_nothing() {
        let mut preview = one_node();
        preview.intent.permits = Permits { force: true, delete_emptydir_data: true, delete_at_deadline: false };
        preview.nodes[0].pods.retain(|(candidate, _)| candidate.pod.name != "zk-0");
        let (printed, begins) = text(&preview, &mut Sheet::new(120, false));
        assert!(begins, "{printed}");
        is_golden(&printed, "tests/golden/drain-dry-run-permitted.txt");
    }

    #[test]
    fn a_node_of_another_s_drain_or_without_agent_is_not_drained() {
        let wanted = |stands| Previewed { stands: Some(stands), ..previewed("ip-10-0-0-8", vec![]) };
        let theirs = wanted(Stands::Intent(intent(Trigger::Coordinator, Permits::default())));
        let words = Previewed { name: "ip-10-0-0-10".into(), ..wanted(Stands::read("new kernel")) };
        let lonely = Previewed { has_agent: false, ..previewed("ip-10-0-0-9", vec![]) };
        let preview = Preview {
            nodes: vec![theirs, lonely, words],
            notes: vec!["you may not list PodDisruptionBudgets: what they forbid is not summed".into()],
            ..one_node()
        };
        let (printed, begins) = text(&preview, &mut Sheet::new(120, false));
        assert!(!begins);
        is_golden(&printed, "tests/golden/drain-dry-run-nodes.txt");
    }
}
