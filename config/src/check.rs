//! What the file's values mean, and whether they go together. Collects every problem rather than stopping at one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use ebb_core::classify::{self, IdlePolicy};
use ebb_core::cron::Window;
use ebb_core::instance;
use ebb_core::kubernetes::{Taint, TaintEffect};
use ebb_core::policy::{self, Amount, Budget, Disruption, Expander, Launch, Policy};
use ebb_core::price::{self, Dollars};
use ebb_core::resources::Resources;
use ebb_core::time::parse_duration;
use ebb_core::units::{InvalidShare, Permille};
use serde_saphyr::{Location, Spanned};

use super::file::{self, File};
use super::{Overrides, Problem, Text};

/// What the kubelet, or the cloud's controller for it, puts on every node.
const INSTANCE_TYPE_LABEL: &str = "node.kubernetes.io/instance-type";
const ARCH_LABEL: &str = "kubernetes.io/arch";
const OS_LABEL: &str = "kubernetes.io/os";

/// The kubelet's default `maxPods`, for an `allocatable` that says nothing of pods. Every pod asks for one of these.
const DEFAULT_PODS: u64 = 110;

pub(super) fn policy(file: &File, overrides: &Overrides) -> Result<Policy, Vec<Problem>> {
    let mut check = Check::default();
    let mut scale_up = check.scale_up(&file.scale_up);
    let mut scale_down = check.scale_down(&file.scale_down);
    overrides.apply(&mut scale_up, &mut scale_down);
    let idle = check.idle(&file.idle, file.scale_down.utilization_below.as_ref());
    let groups = check.groups(&file.groups, &scale_down);
    let ray = file.ray.clusters(&mut check);
    if scale_up.expander == Expander::Price {
        check.prices(&file.groups.value, &groups);
    }
    if check.problems.is_empty() {
        return Ok(Policy { groups, scale_up, scale_down, idle, ray });
    }
    check.problems.sort();
    Err(check.problems)
}

/// Reads values and collects what is wrong with them.
#[derive(Default)]
pub struct Check {
    pub problems: Vec<Problem>,
}

impl Check {
    /// Says what is wrong with the value there.
    pub fn refuse(&mut self, at: Location, message: impl Display) {
        self.problems.push(Problem { line: at.line(), column: at.column(), message: message.to_string() });
    }

    /// Reads a value; `default` if there is none, or if it is wrong and so the file is refused anyway.
    pub fn read<T, E: Display>(&mut self, text: Option<&Text>, default: T, parse: fn(&str) -> Result<T, E>) -> T {
        let Some(text) = text else { return default };
        parse(&text.value).unwrap_or_else(|error| {
            self.refuse(text.referenced, error);
            default
        })
    }

    /// As `30s`, `10m` or `1h30m`.
    pub fn duration(&mut self, text: Option<&Text>, default: Duration) -> Duration {
        self.read(text, default, parse_duration)
    }

    /// A duration that ends something: zero would end it before it began.
    pub fn limit(&mut self, text: Option<&Text>, default: Duration) -> Duration {
        let limit = self.duration(text, default);
        if let Some(text) = text.filter(|_| limit.is_zero()) {
            self.refuse(text.referenced, "expected a duration above zero");
        }
        limit
    }

    /// As `50%`.
    pub fn share(&mut self, text: Option<&Text>, default: Permille) -> Permille {
        self.read(text, default, str::parse)
    }

    /// Amounts as in Kubernetes.
    pub fn resources(&mut self, texts: &BTreeMap<String, Text>) -> Resources {
        let mut resources = Resources::default();
        for (name, text) in texts {
            match Resources::from_texts([(name.as_str(), text.value.as_str())]) {
                Ok(amount) => resources.add(&amount),
                Err(error) => self.refuse(text.referenced, error),
            }
        }
        resources
    }

    fn scale_up(&mut self, file: &file::ScaleUp) -> policy::ScaleUp {
        let default = policy::ScaleUp::default();
        let batch_window = self.duration(file.batch_window.as_ref(), default.batch_window);
        let batch_longest = self.duration(file.batch_longest.as_ref(), default.batch_longest.max(batch_window));
        if let Some(shorter) = file.batch_longest.as_ref().filter(|_| batch_longest < batch_window) {
            self.refuse(shorter.referenced, "expected at least scaleUp.batchWindow, for which every burst waits");
        }
        policy::ScaleUp {
            pending_for: self.duration(file.pending_for.as_ref(), default.pending_for),
            batch_window,
            batch_longest,
            provision_timeout: self.limit(file.provision_timeout.as_ref(), default.provision_timeout),
            expander: self.read(file.expander.as_ref(), default.expander, expander),
            launch: self.read(file.launch.as_ref(), default.launch, launch),
        }
    }

    fn scale_down(&mut self, file: &file::ScaleDown) -> policy::ScaleDown {
        let default = policy::ScaleDown::default();
        let max_parallel_drains = self.read(file.max_parallel_drains.as_ref(), default.max_parallel_drains, count);
        if let Some(zero) = file.max_parallel_drains.as_ref().filter(|_| max_parallel_drains == 0) {
            self.refuse(zero.referenced, "expected at least 1: with 0 no node would ever be removed");
        }
        policy::ScaleDown {
            unneeded_for: self.duration(file.unneeded_for.as_ref(), default.unneeded_for),
            gpu_unneeded_for: self.duration(file.gpu_unneeded_for.as_ref(), default.gpu_unneeded_for),
            max_parallel_drains,
            drain_timeout: self.limit(file.drain_timeout.as_ref(), default.drain_timeout),
            report_timeout: self.limit(file.report_timeout.as_ref(), default.report_timeout),
            consolidate: self.read(file.consolidate.as_ref(), default.consolidate, flag),
            budgets: file.budgets.iter().filter_map(|budget| self.cluster_budget(budget)).collect(),
            run_to_completion: self.read(file.run_to_completion.as_ref(), default.run_to_completion, flag),
            run_to_completion_timeout: self
                .limit(file.run_to_completion_timeout.as_ref(), default.run_to_completion_timeout),
        }
    }

    fn cluster_budget(&mut self, file: &file::Budget) -> Option<Budget> {
        let budget = self.budget(file)?;
        if budget.nodes.of(u32::MAX) == 0 && budget.window.is_none() && budget.reasons.is_empty() {
            self.refuse(file.nodes.referenced, "expected a schedule or reasons: with 0 no node would ever be removed");
        }
        Some(budget)
    }

    /// `None`: something is wrong with it.
    fn budget(&mut self, file: &file::Budget) -> Option<Budget> {
        let known = self.problems.len();
        let nodes = self.read(Some(&file.nodes), Amount::Count(0), amount);
        let reasons = file.reasons.as_ref().map(|reasons| self.reasons(reasons)).unwrap_or_default();
        let duration = file.duration.as_ref().map(|duration| self.limit(Some(duration), Duration::ZERO));
        let schedule = file.schedule.as_ref().and_then(|text| self.read(Some(text), None, |it| it.parse().map(Some)));
        match (&file.schedule, &file.duration) {
            (Some(schedule), None) => {
                self.refuse(
                    schedule.referenced,
                    "expected a duration as well: for how long the budget holds each time",
                );
            }
            (None, Some(duration)) => {
                self.refuse(duration.referenced, "expected a schedule as well: when the budget begins to hold");
            }
            _ => {}
        }
        let window = schedule.zip(duration).map(|(schedule, duration)| Window { schedule, duration });
        (self.problems.len() == known).then_some(Budget { nodes, window, reasons })
    }

    fn reasons(&mut self, file: &Spanned<Vec<Text>>) -> BTreeSet<Disruption> {
        if file.value.is_empty() {
            self.refuse(file.referenced, "expected at least one reason; left out, the budget is about all");
        }
        file.value.iter().filter_map(|text| self.read(Some(text), None, |it| disruption(it).map(Some))).collect()
    }

    /// The CPU's lower threshold is the flow's "utilization": it is said once, in `scaleDown`.
    fn idle(&mut self, file: &file::Idle, utilization_below: Option<&Text>) -> IdlePolicy {
        let default = IdlePolicy::default();
        let cpu = file.cpu.as_ref();
        if let Some(idle_below) = cpu.and_then(|band| band.idle_below.as_ref()) {
            self.refuse(idle_below.referenced, "idle.cpu.idleBelow is said as scaleDown.utilizationBelow");
        }
        let mut band = |file: Option<&file::Band>, default| {
            self.band(file.and_then(|it| it.idle_below.as_ref()), file.and_then(|it| it.busy_from.as_ref()), default)
        };
        let cpu_steal = band(file.cpu_steal.as_ref(), default.cpu_steal);
        let gpu = band(file.gpu.as_ref(), default.gpu);
        let memory_pressure = band(file.memory_pressure.as_ref(), default.memory_pressure);
        let run_queue = band(file.run_queue.as_ref(), default.run_queue);
        IdlePolicy {
            window: self.limit(file.window.as_ref(), default.window),
            initialization_period: self.duration(file.initialization_period.as_ref(), default.initialization_period),
            cpu: self.band(utilization_below, cpu.and_then(|band| band.busy_from.as_ref()), default.cpu),
            cpu_steal,
            gpu,
            memory_pressure,
            run_queue,
        }
    }

    /// A threshold that is not given keeps its default distance from the one that is.
    fn band(&mut self, idle_below: Option<&Text>, busy_from: Option<&Text>, default: classify::Band) -> classify::Band {
        let idle = self.share(idle_below, default.idle_below);
        let gap = default.busy_from.get() - default.idle_below.get();
        let above = Permille::new(idle.get() + gap).unwrap_or(Permille::percent(100));
        let busy = self.share(busy_from, above);
        if let Some(text) = busy_from.filter(|_| busy < idle) {
            self.refuse(
                text.referenced,
                format_args!("busy from {busy} is below idle below {idle}: a node would be both"),
            );
        }
        classify::Band { idle_below: idle, busy_from: busy }
    }

    fn groups(
        &mut self,
        file: &Spanned<Vec<file::Group>>,
        scale_down: &policy::ScaleDown,
    ) -> BTreeMap<String, policy::Group> {
        if file.value.is_empty() {
            self.refuse(file.referenced, "expected at least one group");
        }
        let mut groups = BTreeMap::new();
        for group in &file.value {
            let read = self.group(group, scale_down);
            if group.name.value.is_empty() {
                self.refuse(group.name.referenced, "expected the name of an Auto Scaling group");
            }
            if groups.insert(group.name.value.clone(), read).is_some() {
                self.refuse(group.name.referenced, format_args!("a second group {}", group.name.value));
            }
        }
        groups
    }

    fn group(&mut self, file: &file::Group, scale_down: &policy::ScaleDown) -> policy::Group {
        // Where one of them is no number there is nothing to compare.
        let min = self.read(Some(&file.min), 0, count);
        let max = self.read(Some(&file.max), u32::MAX, count);
        if max == 0 {
            self.refuse(file.max.referenced, "expected at least 1: a group with 0 nodes at most is no group");
        } else if min > max {
            self.refuse(file.min.referenced, format_args!("min {min} is above max {max}"));
        }
        let allocatable = self.allocatable(file);
        let unneeded_for = if allocatable.has_gpu() { scale_down.gpu_unneeded_for } else { scale_down.unneeded_for };
        policy::Group {
            min,
            max,
            instance_type: file.instance_type.value.clone(),
            labels: self.labels(file),
            taints: file.taints.iter().filter_map(|taint| self.taint(taint)).collect(),
            allocatable,
            unneeded_for: self.duration(file.unneeded_for.as_ref(), unneeded_for),
            priority: self.read(file.priority.as_ref(), 0, integer),
            price: file
                .price
                .as_ref()
                .map(|price| self.read(Some(price), Dollars::default(), str::parse))
                .or_else(|| price::per_hour(&file.instance_type.value)),
            budgets: file.budgets.iter().filter_map(|budget| self.budget(budget)).collect(),
            run_to_completion: self.read(file.run_to_completion.as_ref(), scale_down.run_to_completion, flag),
            lifecycle_hook: file.lifecycle_hook.clone(),
        }
    }

    /// What is not known cannot be compared.
    fn prices(&mut self, file: &[file::Group], groups: &BTreeMap<String, policy::Group>) {
        for group in file.iter().filter(|group| groups.get(&group.name.value).is_some_and(|it| it.price.is_none())) {
            let message = format_args!(
                "no price is known for {}: give its price (of an hour, in US dollars), or choose another expander",
                group.instance_type.value
            );
            self.refuse(group.instance_type.referenced, message);
        }
    }

    fn allocatable(&mut self, file: &file::Group) -> Resources {
        let Some(allocatable) = &file.allocatable else {
            let known = instance::allocatable(&file.instance_type.value);
            return known.unwrap_or_else(|| {
                let message =
                    format_args!("unknown instance type {}: give its allocatable resources", file.instance_type.value);
                self.refuse(file.instance_type.referenced, message);
                Resources::default()
            });
        };
        let mut resources = self.resources(&allocatable.value);
        for name in ["cpu", "memory"] {
            if !allocatable.value.contains_key(name) {
                self.refuse(allocatable.referenced, format_args!("expected {name}: a node without it runs no pods"));
            }
        }
        if resources.amount("pods") == 0 {
            resources.set("pods", DEFAULT_PODS);
        }
        resources
    }

    fn labels(&mut self, file: &file::Group) -> BTreeMap<String, String> {
        let instance_type = &file.instance_type.value;
        let mut labels = BTreeMap::from([
            (INSTANCE_TYPE_LABEL.to_owned(), instance_type.clone()),
            (ARCH_LABEL.to_owned(), architecture(instance_type).to_owned()),
            (OS_LABEL.to_owned(), "linux".to_owned()),
        ]);
        for (key, value) in &file.labels {
            if key == INSTANCE_TYPE_LABEL && value.value != *instance_type {
                let message = format_args!("label {} contradicts instance type {instance_type}", value.value);
                self.refuse(value.referenced, message);
            }
            labels.insert(key.clone(), value.value.clone());
        }
        labels
    }

    fn taint(&mut self, file: &file::Taint) -> Option<Taint> {
        if file.key.value.is_empty() {
            self.refuse(file.key.referenced, "expected the taint's key");
        }
        let effect = TaintEffect::parse(&file.effect.value);
        if effect.is_none() {
            let message =
                format_args!("`{}` is no taint effect: NoExecute, NoSchedule or PreferNoSchedule", file.effect.value);
            self.refuse(file.effect.referenced, message);
        }
        Some(Taint { key: file.key.value.clone(), value: file.value.clone(), effect: effect? })
    }
}

/// A number of things.
pub fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number of 0 or more"))
}

/// A number of nodes, or a share of them.
fn amount(text: &str) -> Result<Amount, String> {
    if text.ends_with('%') {
        return text.parse().map(Amount::Share).map_err(|error: InvalidShare| error.to_string());
    }
    let invalid = |_| format!("`{text}` is neither a whole number of 0 or more nor a share of the nodes as in 10%");
    text.parse().map(Amount::Count).map_err(invalid)
}

fn disruption(text: &str) -> Result<Disruption, String> {
    let known = Disruption::ALL.into_iter().find(|it| it.name() == text);
    known.ok_or_else(|| format!("`{text}` is no reason for a drain: completed, consolidated or empty"))
}

fn integer(text: &str) -> Result<i32, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number"))
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{text}` is neither true nor false"))
}

fn launch(text: &str) -> Result<Launch, String> {
    match text {
        "launchInstances" => Ok(Launch::LaunchInstances),
        "setDesiredCapacity" => Ok(Launch::SetDesiredCapacity),
        _ => Err(format!("`{text}` is no way to launch: setDesiredCapacity or launchInstances")),
    }
}

fn expander(text: &str) -> Result<Expander, String> {
    match text {
        "leastWaste" => Ok(Expander::LeastWaste),
        "price" => Ok(Expander::Price),
        _ => Err(format!("`{text}` is no expander: leastWaste or price")),
    }
}

/// AWS names Graviton types with a `g` after the generation (`m7g`, `im4gn`, `g5g`); the first, `a1`, came before.
fn architecture(instance_type: &str) -> &'static str {
    let family = instance_type.split('.').next().unwrap_or_default();
    let attributes =
        family.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches(|c: char| c.is_ascii_digit());
    if family == "a1" || attributes.contains('g') { "arm64" } else { "amd64" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graviton_is_told_by_its_name() {
        let check = |name, expected| assert_eq!(architecture(name), expected, "{name}");
        for name in ["m7g.large", "im4gn.xlarge", "g5g.xlarge", "a1.large", "c8gd.medium", "x2gd.metal"] {
            check(name, "arm64");
        }
        for name in ["m5.xlarge", "g4dn.xlarge", "g6e.12xlarge", "p5en.48xlarge", "u-6tb1.metal", "m7i-flex.large"] {
            check(name, "amd64");
        }
    }
}
