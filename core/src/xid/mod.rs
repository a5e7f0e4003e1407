//! Whether a GPU is fit for work: what its XIDs, its driver's recovery action and its memory say together. Pure.
//! Where the figures come from is the agent's; what happens to a node whose GPU is not fit is `fleet`'s.

mod history;
mod policy;
mod verdict;

pub use history::{Burst, History, Origin};
pub use policy::{InvalidPolicy, Policy, Response};
pub use verdict::{Figures, GpuVerdict, Reason, RecoveryAction, Verdict};
