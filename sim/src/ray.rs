//! A group of Ray workers: tasks wait, run on free slots, end; Ray's autoscaler counts them.
//!
//! After Ray's autoscaler v2 with KubeRay: a round every few seconds, all of the demand at once (`upscalingMode:
//! Default`), and a worker that had no task for the idle time is removed by name. Not modelled: placement groups,
//! actors, objects that keep a worker from being idle, launch limits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ebb_core::time::Instant;

/// A piece of work for one slot of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) id: u64,
    /// Index of the scenario's job.
    pub(crate) job: usize,
    pub(crate) submitted: Instant,
    pub(crate) length: Duration,
}

/// A task that has just been given to a worker.
pub(crate) struct Started {
    pub(crate) worker: String,
    pub(crate) task: Task,
}

#[derive(Debug)]
pub(crate) struct Ray {
    slots: usize,
    idle_time: Duration,
    queue: VecDeque<Task>,
    /// Those that have joined, by pod UID.
    workers: BTreeMap<String, Worker>,
    running: usize,
}

#[derive(Debug)]
struct Worker {
    tasks: Vec<Task>,
    /// Since when it has had no task.
    idle_since: Instant,
    /// Its pod is going: it takes no more tasks.
    leaving: bool,
}

/// What Ray's autoscaler makes of a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Workers that the tasks need, and those not idle for long enough to go.
    pub(crate) workers: u32,
    /// Idle for long enough to go, the longest idle first.
    pub(crate) idle: Vec<String>,
}

impl Ray {
    pub(crate) fn new(slots: u32, idle_time: Duration) -> Self {
        Self { slots: slots as usize, idle_time, queue: VecDeque::new(), workers: BTreeMap::new(), running: 0 }
    }

    pub(crate) fn submit(&mut self, task: Task) {
        self.queue.push_back(task);
    }

    pub(crate) fn join(&mut self, now: Instant, worker: &str) {
        let worker_state = Worker { tasks: Vec::new(), idle_since: now, leaving: false };
        self.workers.insert(worker.to_owned(), worker_state);
    }

    /// The worker's pod is being deleted: Ray gives it nothing more.
    pub(crate) fn leave(&mut self, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.leaving = true;
        }
    }

    /// The worker is gone; its tasks start anew elsewhere, before all others. Says how many.
    pub(crate) fn lose(&mut self, worker: &str) -> usize {
        let Some(worker) = self.workers.remove(worker) else { return 0 };
        self.running -= worker.tasks.len();
        let lost = worker.tasks.len();
        for task in worker.tasks.into_iter().rev() {
            self.queue.push_front(task);
        }
        lost
    }

    /// Gives waiting tasks to free slots, by the workers' names: Ray packs.
    pub(crate) fn assign(&mut self) -> Vec<Started> {
        let mut started = Vec::new();
        if self.queue.is_empty() {
            return started;
        }
        for (name, worker) in &mut self.workers {
            while !worker.leaving && worker.tasks.len() < self.slots {
                let Some(task) = self.queue.pop_front() else { return started };
                worker.tasks.push(task.clone());
                self.running += 1;
                started.push(Started { worker: name.clone(), task });
            }
        }
        started
    }

    /// `None`: the worker has gone since, and the task with it.
    pub(crate) fn finish(&mut self, now: Instant, worker: &str, task: u64) -> Option<Task> {
        let worker = self.workers.get_mut(worker)?;
        let index = worker.tasks.iter().position(|running| running.id == task)?;
        self.running -= 1;
        worker.idle_since = now;
        Some(worker.tasks.remove(index))
    }

    pub(crate) fn round(&self, now: Instant) -> Demand {
        let staying = || self.workers.iter().filter(|(_, worker)| !worker.leaving);
        let busy = staying().filter(|(_, worker)| !worker.tasks.is_empty()).count();
        let slots_free = busy * self.slots - staying().map(|(_, worker)| worker.tasks.len()).sum::<usize>();
        let needed = busy + self.queue.len().saturating_sub(slots_free).div_ceil(self.slots);
        let mut idle: Vec<_> = staying()
            .filter(|(_, worker)| worker.tasks.is_empty() && now.since(worker.idle_since) >= self.idle_time)
            .map(|(name, worker)| (worker.idle_since, name.clone()))
            .collect();
        idle.sort();
        let fresh = staying().count() - idle.len();
        let workers = u32::try_from(needed.max(fresh)).unwrap_or(u32::MAX);
        Demand { workers, idle: idle.into_iter().map(|(_, name)| name).collect() }
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn running(&self) -> usize {
        self.running
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The tasks on a worker; empty for one that is not there.
    pub(crate) fn tasks_of(&self, worker: &str) -> &[Task] {
        self.workers.get(worker).map_or(&[], |worker| &worker.tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn ray(tasks: u64) -> Ray {
        let mut ray = Ray::new(2, Duration::from_secs(60));
        for id in 0..tasks {
            ray.submit(Task { id, job: 0, submitted: at(0), length: Duration::from_secs(10) });
        }
        ray
    }

    #[test]
    fn the_queue_asks_for_workers_of_as_many_slots() {
        let mut ray = ray(5);
        assert_eq!(ray.round(at(0)), Demand { workers: 3, idle: vec![] });
        ray.join(at(0), "a");
        assert_eq!(ray.assign().len(), 2);
        assert_eq!(ray.round(at(0)).workers, 3);
        ray.finish(at(10), "a", 0);
        // One slot of the busy worker is free, so three tasks need one worker more.
        assert_eq!(ray.round(at(10)).workers, 2);
    }

    #[test]
    fn a_worker_goes_after_its_idle_time_and_not_before() {
        let mut ray = ray(1);
        ray.join(at(0), "a");
        ray.join(at(0), "b");
        ray.assign();
        assert_eq!(ray.round(at(59)), Demand { workers: 2, idle: vec![] });
        assert_eq!(ray.round(at(60)), Demand { workers: 1, idle: vec!["b".into()] });
        ray.finish(at(61), "a", 0);
        assert_eq!(ray.round(at(120)).idle, ["b"]);
        assert_eq!(ray.round(at(121)), Demand { workers: 0, idle: vec!["b".into(), "a".into()] });
    }

    #[test]
    fn tasks_of_a_lost_worker_start_anew_first() {
        let mut ray = ray(3);
        ray.join(at(0), "a");
        ray.assign();
        ray.leave("a");
        assert_eq!(ray.lose("a"), 2);
        assert_eq!(ray.finish(at(1), "a", 0), None);
        ray.join(at(2), "b");
        let started: Vec<_> = ray.assign().into_iter().map(|started| started.task.id).collect();
        assert_eq!(started, [0, 1]);
        assert_eq!((ray.queued(), ray.running()), (1, 2));
    }
}
