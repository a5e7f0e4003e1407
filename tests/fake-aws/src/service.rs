//! The Auto Scaling service as a machine that is told the time: calls in, answers out, and when to wake it next. Pure: no
//! clock, no I/O, no chance but a seed.
//!
//! Groups launch what they miss, in the zone where they have the fewest, and try again what failed; hooks hold instances;
//! every step is an activity. After the Auto Scaling user guide and API reference; errors and messages are in AWS's words
//! where these are known from them or from people's logs.
//!
//! Not modelled: scaling policies, cooldowns (`HonorCooldown` is ignored), weights, warm pools, instance refresh,
//! standby, rebalancing between zones, notifications, health checks but for an instance that is taken away.

mod actions;
mod activity;
mod describe;
mod group;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::faults::{Attempt, Faults, Market, Rule};
use crate::ids::Ids;
use crate::query::Params;
use crate::region::Region;
use activity::{Activity, ActivityIndex, State, refusal, second};
use group::{Group, Hold, HookResult, Instance, Lifecycle, Template, Transition};

/// How long an instance can be held at most: so many heartbeats, and never longer than the second.
const HEARTBEATS_AT_MOST: u32 = 100;
const HOLD_AT_MOST: Duration = Duration::from_secs(48 * 3600);

/// How long things take, in milliseconds. At once, unless asked for: a test should not wait for what it does not test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// From a change of the desired capacity to what the group does about it.
    pub react_ms: u64,
    /// From the launch of an instance to InService, or to the hook that holds it.
    pub launch_ms: u64,
    /// From Terminating, or from the hook that let it go, to gone.
    pub terminate_ms: u64,
    /// From a launch that failed to the next try. AWS waits longer the longer it fails.
    pub retry_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { react_ms: 0, launch_ms: 0, terminate_ms: 0, retry_ms: 1000 }
    }
}

pub struct Service {
    region: Region,
    pub timing: Timing,
    pub faults: Faults,
    ids: Ids,
    groups: BTreeMap<String, Group>,
    /// Oldest first.
    activities: Vec<Activity>,
    templates: BTreeMap<String, Template>,
    /// What LaunchInstances was asked and answered, by client token.
    launches: BTreeMap<String, (Params, Value)>,
    /// How many addresses of each zone have been given out.
    addresses: BTreeMap<String, u32>,
}

/// A group as the lab shows it.
#[derive(Debug, Serialize)]
pub struct GroupView {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: Vec<InstanceView>,
}

#[derive(Debug, Serialize)]
pub struct InstanceView {
    pub id: String,
    pub state: &'static str,
    #[serde(rename = "type")]
    pub instance_type: String,
    pub zone: String,
    pub market: Market,
    pub ip: String,
    /// The name of its Node, whether that exists yet or not.
    pub node: String,
}

/// An attempt that failed.
struct Refusal {
    zone: String,
    instance_type: String,
    market: Market,
    code: String,
    /// As EC2 says it.
    message: String,
}

impl Service {
    /// An account without groups. The same seed gives the same ids.
    pub fn new(region: &str, timing: Timing, seed: u64) -> Self {
        Self {
            region: Region::new(region),
            timing,
            faults: Faults::default(),
            ids: Ids::new(seed),
            groups: BTreeMap::new(),
            activities: Vec::new(),
            templates: BTreeMap::new(),
            launches: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// One call of the API; the answer is what its `…Result` element holds.
    pub fn call(&mut self, now: Timestamp, action: &str, params: &Params) -> Result<Value, ApiError> {
        self.advance(now);
        let result = self.act(now, action, params);
        self.advance(now);
        result
    }

    /// Lets happen what is due. Whether anything was.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        let mut happened = false;
        // What happens may make something else due at once.
        while self.next_wakeup().is_some_and(|due| due <= now) {
            happened = true;
            let names: Vec<String> = self.groups.keys().cloned().collect();
            for name in &names {
                self.step_instances(now, name);
                if self.groups[name].acts_at.is_some_and(|due| due <= now) {
                    self.balance(now, name);
                }
            }
        }
        happened
    }

    /// When `advance` has something to do; `None` while nothing is under way.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let of_group = |group: &Group| {
            let instances = group.instances.iter().filter_map(|instance| instance.lifecycle.due());
            instances.chain(group.acts_at).min()
        };
        self.groups.values().filter_map(of_group).min()
    }

    pub fn groups(&self) -> Vec<GroupView> {
        let instance = |instance: &Instance| InstanceView {
            id: instance.id.clone(),
            state: instance.lifecycle.as_str(),
            instance_type: instance.instance_type.clone(),
            zone: instance.zone.clone(),
            market: instance.market,
            ip: instance.ip.to_string(),
            node: self.region.private_name(instance.ip),
        };
        let group = |group: &Group| GroupView {
            name: group.name.clone(),
            min: group.min,
            max: group.max,
            desired: group.desired,
            instances: group.instances.iter().map(instance).collect(),
        };
        self.groups.values().map(group).collect()
    }

    /// An instance that EC2 takes away, as a reclaimed Spot instance or a host that broke. Whether there was such a one.
    pub fn lose(&mut self, now: Timestamp, id: &str) -> bool {
        self.advance(now);
        let Some((name, index)) = self.find(id) else { return false };
        self.end_launch(now, &name, index);
        let Instance { zone, lifecycle, activity, .. } = self.group_mut(&name).instances.remove(index);
        if lifecycle.is_live() {
            let cause = format!(
                "At {} an instance was taken out of service in response to an EC2 health check indicating it has been \
                 terminated or stopped.",
                second(now)
            );
            let description = format!("Terminating EC2 instance: {id}");
            self.record(now, &name, &zone, description, cause, State::Successful { ended: now });
        } else {
            // It was about to go anyway, and that is told already.
            self.activities[activity.0].state = State::Successful { ended: now };
        }
        self.act_soon(now, &name);
        self.advance(now);
        true
    }

    pub fn region(&self) -> &str {
        self.region.name()
    }

    fn group_mut(&mut self, name: &str) -> &mut Group {
        self.groups.get_mut(name).expect("names come from the groups themselves")
    }

    /// The group that an instance is in, and where.
    fn find(&self, id: &str) -> Option<(String, usize)> {
        self.groups.values().find_map(|group| {
            let index = group.instances.iter().position(|instance| instance.id == id)?;
            Some((group.name.clone(), index))
        })
    }

    fn act_soon(&mut self, now: Timestamp, name: &str) {
        let at = now + Duration::from_millis(self.timing.react_ms);
        let group = self.group_mut(name);
        group.acts_at = Some(group.acts_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Launches what is missing, or lets go what is too much.
    fn balance(&mut self, now: Timestamp, name: &str) {
        let group = self.group_mut(name);
        group.acts_at = None;
        let (live, desired, asked) = (group.live_count(), group.desired, group.asked.clone());
        if live < desired && !group.suspended.contains("Launch") {
            let cause = format!(
                "{asked}At {} an instance was started in response to a difference between desired and actual capacity, \
                 increasing the capacity from {live} to {desired}.",
                second(now)
            );
            let mut missing = 0;
            for _ in live..desired {
                let zones = self.groups[name].zones_by_need();
                missing += u32::from(self.launch(now, name, &zones, &cause).is_err());
            }
            if missing > 0 {
                // Never at once: time would stand still.
                self.group_mut(name).acts_at = Some(now + Duration::from_millis(self.timing.retry_ms.max(1)));
                return;
            }
        }
        if live > desired && !self.groups[name].suspended.contains("Terminate") {
            for _ in desired..live {
                let group = &self.groups[name];
                let Some(index) = group.next_to_go() else { break };
                let cause = format!(
                    "{asked}At {0} an instance was taken out of service in response to a difference between desired and \
                     actual capacity, shrinking the capacity from {live} to {desired}.  At {0} instance {1} was selected \
                     for termination.",
                    second(now),
                    group.instances[index].id
                );
                self.terminate(now, name, index, cause);
            }
        }
        self.group_mut(name).asked.clear();
    }

    /// Launches one instance in the first of these zones, and of the first type, that there is capacity for.
    fn launch(&mut self, now: Timestamp, name: &str, zones: &[String], cause: &str) -> Result<String, Vec<Refusal>> {
        let group = &self.groups[name];
        let (market, types) = (group.next_market(), group.offer.types.clone());
        let mut refusals = Vec::new();
        for zone in zones {
            for instance_type in &types {
                let attempt = Attempt { group: name, zone, instance_type, market };
                match self.faults.launch(now, attempt) {
                    Some(rule) => refusals.push(self.refused(now, attempt, &rule, cause)),
                    None => return Ok(self.launched(now, attempt, cause)),
                }
            }
        }
        Err(refusals)
    }

    fn refused(&mut self, now: Timestamp, attempt: Attempt<'_>, rule: &Rule, cause: &str) -> Refusal {
        let group = &self.groups[attempt.group];
        let others: Vec<&str> = group.zones.iter().map(String::as_str).filter(|zone| *zone != attempt.zone).collect();
        let message = refusal(rule, attempt, &others, &group.offer.template.id);
        let code = rule.code.clone().unwrap_or_default();
        // A mixed instances policy launches through a fleet, and that says more.
        let shown = match (&group.offer.policy, attempt.market) {
            (None, _) => message.clone(),
            (Some(_), Market::OnDemand) => format!("Could not launch On-Demand Instances. {code} - {message}"),
            (Some(_), Market::Spot) => format!("Could not launch Spot Instances. {code} - {message}"),
        };
        let state = State::Failed { ended: now, message: format!("{shown} Launching EC2 instance failed.") };
        self.record(now, attempt.group, attempt.zone, "Launching a new EC2 instance".into(), cause.to_owned(), state);
        let Attempt { zone, instance_type, market, .. } = attempt;
        Refusal { zone: zone.to_owned(), instance_type: instance_type.to_owned(), market, code, message }
    }

    fn launched(&mut self, now: Timestamp, attempt: Attempt<'_>, cause: &str) -> String {
        let Attempt { group: name, zone, instance_type, market } = attempt;
        let id = self.ids.resource("i");
        let ip = self.free_address(zone);
        let description = format!("Launching a new EC2 instance: {id}");
        let activity = self.record(now, name, zone, description, cause.to_owned(), State::PreInService);
        let until = now + Duration::from_millis(self.timing.launch_ms);
        let group = self.group_mut(name);
        group.instances.push(Instance {
            id: id.clone(),
            instance_type: instance_type.to_owned(),
            zone: zone.to_owned(),
            market,
            ip,
            protected: group.protects_new_instances,
            lifecycle: Lifecycle::Pending { until },
            activity,
        });
        id
    }

    /// The next address of the zone that no instance has. A subnet holds 4091.
    fn free_address(&mut self, zone: &str) -> std::net::Ipv4Addr {
        loop {
            let next = self.addresses.entry(zone.to_owned()).or_default();
            let Some(address) = self.region.address(zone, *next) else {
                *next = 0;
                continue;
            };
            *next += 1;
            if self.groups.values().all(|group| group.instances.iter().all(|instance| instance.ip != address)) {
                return address;
            }
        }
    }

    /// Begins the end of an instance, which a hook may put off.
    fn terminate(&mut self, now: Timestamp, name: &str, index: usize, cause: String) -> ActivityIndex {
        self.end_launch(now, name, index);
        let holds = self.holds(now, name, Transition::Terminating);
        let until = now + Duration::from_millis(self.timing.terminate_ms);
        let held = !holds.is_empty();
        let instance = &mut self.group_mut(name).instances[index];
        instance.lifecycle = if held { Lifecycle::TerminatingWait { holds } } else { Lifecycle::Terminating { until } };
        let (id, zone) = (instance.id.clone(), instance.zone.clone());
        let state = if held { State::MidLifecycleAction } else { State::InProgress };
        let activity = self.record(now, name, &zone, format!("Terminating EC2 instance: {id}"), cause, state);
        self.group_mut(name).instances[index].activity = activity;
        activity
    }

    /// Says of an instance that goes before it was in service that its launch came to nothing.
    fn end_launch(&mut self, now: Timestamp, name: &str, index: usize) {
        let instance = &self.groups[name].instances[index];
        if matches!(instance.lifecycle, Lifecycle::Pending { .. } | Lifecycle::PendingWait { .. }) {
            let state = &mut self.activities[instance.activity.0].state;
            if state.is_under_way() {
                let message = "The instance was terminated before it was in service.".to_owned();
                *state = State::Cancelled { ended: now, message };
            }
        }
    }

    fn record(
        &mut self,
        now: Timestamp,
        name: &str,
        zone: &str,
        description: String,
        cause: String,
        state: State,
    ) -> ActivityIndex {
        let id = self.ids.uuid();
        self.activities.push(Activity {
            id,
            group: name.to_owned(),
            arn: self.groups[name].arn.clone(),
            description,
            cause,
            zone: zone.to_owned(),
            subnet: self.region.subnet(zone),
            started: now,
            state,
        });
        ActivityIndex(self.activities.len() - 1)
    }

    fn holds(&mut self, now: Timestamp, name: &str, transition: Transition) -> Vec<Hold> {
        let hooks: Vec<(String, u32)> = self.groups[name]
            .hooks_for(transition)
            .map(|(hook, settings)| (hook.clone(), settings.heartbeat_seconds))
            .collect();
        let hold = |(hook, seconds)| {
            let heartbeat = Duration::from_secs(u64::from(seconds));
            let at_most = now + HOLD_AT_MOST.min(heartbeat * HEARTBEATS_AT_MOST);
            Hold { hook, token: self.ids.uuid(), until: now + heartbeat, at_most }
        };
        hooks.into_iter().map(hold).collect()
    }

    fn step_instances(&mut self, now: Timestamp, name: &str) {
        // From the last to the first: one that goes moves only those that were looked at.
        for index in (0..self.groups[name].instances.len()).rev() {
            let instance = &self.groups[name].instances[index];
            if instance.lifecycle.due().is_none_or(|due| due > now) {
                continue;
            }
            match &instance.lifecycle {
                Lifecycle::Pending { .. } => {
                    let holds = self.holds(now, name, Transition::Launching);
                    if holds.is_empty() {
                        self.serve(now, name, index);
                    } else {
                        let instance = &mut self.group_mut(name).instances[index];
                        instance.lifecycle = Lifecycle::PendingWait { holds };
                        let activity = instance.activity;
                        self.activities[activity.0].state = State::MidLifecycleAction;
                    }
                }
                Lifecycle::PendingWait { holds } | Lifecycle::TerminatingWait { holds } => {
                    let late = holds.iter().find(|hold| hold.until <= now).expect("it is due because a hold is");
                    let (hook, token) = (late.hook.clone(), late.token.clone());
                    // A hook that was deleted holds nobody.
                    let default = self.groups[name].hooks.get(&hook).map(|hook| hook.default_result);
                    self.release(
                        now,
                        name,
                        index,
                        &token,
                        default.unwrap_or(HookResult::Continue),
                        "Heartbeat Timeout",
                    );
                }
                Lifecycle::Terminating { .. } | Lifecycle::TerminatingProceed { .. } => {
                    let instance = self.group_mut(name).instances.remove(index);
                    self.activities[instance.activity.0].state = State::Successful { ended: now };
                }
                Lifecycle::InService => {}
            }
        }
    }

    fn serve(&mut self, now: Timestamp, name: &str, index: usize) {
        let instance = &mut self.group_mut(name).instances[index];
        instance.lifecycle = Lifecycle::InService;
        let activity = instance.activity;
        self.activities[activity.0].state = State::Successful { ended: now };
    }

    /// Ends one hook's hold. The instance goes on when it was the last, or when the hook gave up on it.
    fn release(&mut self, now: Timestamp, name: &str, index: usize, token: &str, result: HookResult, why: &str) {
        let instance = &mut self.group_mut(name).instances[index];
        let starts = matches!(instance.lifecycle, Lifecycle::PendingWait { .. });
        let Some(holds) = instance.lifecycle.holds() else { return };
        holds.retain(|hold| hold.token != token);
        let was_last = holds.is_empty();
        let (activity, id) = (instance.activity, instance.id.clone());
        match (starts, result) {
            (true, HookResult::Abandon) => {
                let message = format!(
                    "Instance failed to complete user's Lifecycle Action: Lifecycle Action with token {token} was \
                     abandoned: {why}"
                );
                self.activities[activity.0].state = State::Cancelled { ended: now, message };
                let cause = format!(
                    "At {} instance {id} was taken out of service in response to a launch failure.",
                    second(now)
                );
                self.terminate(now, name, index, cause);
                self.act_soon(now, name);
            }
            (true, HookResult::Continue) if was_last => self.serve(now, name, index),
            (false, HookResult::Abandon) => self.proceed(now, name, index),
            (false, HookResult::Continue) if was_last => self.proceed(now, name, index),
            (_, HookResult::Continue) => {}
        }
    }

    fn proceed(&mut self, now: Timestamp, name: &str, index: usize) {
        let until = now + Duration::from_millis(self.timing.terminate_ms);
        self.group_mut(name).instances[index].lifecycle = Lifecycle::TerminatingProceed { until };
    }
}
