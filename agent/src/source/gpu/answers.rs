//! Asks one GPU for figures and remembers what it does not have: that is never asked again.

use std::collections::BTreeSet;
use std::sync::Arc;

use nvml_wrapper::error::NvmlError;

use super::Error;

/// What one GPU answered so far.
#[derive(Debug, Default)]
pub(super) struct Answers {
    index: u32,
    unsupported: BTreeSet<&'static str>,
    pub(super) state: State,
    failed: Vec<Error>,
}

/// How the latest round of questions went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Answering,
    /// Nothing more is asked in this round.
    Lost,
    /// NVML itself is no longer what it was; it must be initialized anew.
    Stale,
}

impl Answers {
    pub(super) fn of(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Begins a round: a GPU that was lost may be back.
    pub(super) fn begin(&mut self) {
        self.state = State::Answering;
    }

    /// After another MIG mode the GPU has other figures.
    pub(super) fn forget(&mut self) {
        self.unsupported.clear();
    }

    pub(super) fn supports(&self, figure: &'static str) -> bool {
        !self.unsupported.contains(figure)
    }

    pub(super) fn ask<T>(&mut self, figure: &'static str, call: impl FnOnce() -> Result<T, NvmlError>) -> Option<T> {
        if self.state != State::Answering || !self.supports(figure) {
            return None;
        }
        match call() {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed(figure, error);
                None
            }
        }
    }

    pub(super) fn failed(&mut self, figure: &'static str, error: NvmlError) {
        match error {
            // A driver that is older than the function does not become newer while it is loaded.
            NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
                self.unsupported.insert(figure);
                return;
            }
            // Nor do our rights grow: said once.
            NvmlError::NoPermission => _ = self.unsupported.insert(figure),
            NvmlError::GpuLost | NvmlError::ResetRequired => self.state = State::Lost,
            NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch => {
                self.state = State::Stale;
            }
            _ => {}
        }
        self.failed.push(Error::Figure { index: self.index, figure, source: Arc::new(error) });
    }

    /// What failed since this was last called, without that which is not supported.
    pub(super) fn take_failed(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_asked_once_and_is_no_error() {
        let mut answers = Answers::of(0);
        assert_eq!(answers.ask::<u32>("power", || Err(NvmlError::NotSupported)), None);
        assert_eq!(answers.ask("power", || -> Result<u32, _> { panic!("asked again") }), None);
        assert!(answers.take_failed().is_empty());
        answers.forget();
        assert_eq!(answers.ask("power", || Ok(1)), Some(1));
    }

    #[test]
    fn missing_rights_are_reported_once() {
        let mut answers = Answers::of(3);
        for _ in 0..2 {
            assert_eq!(answers.ask::<u32>("activity", || Err(NvmlError::NoPermission)), None);
        }
        let failed = answers.take_failed();
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].kind(), failed[0].to_string()), ("permission", "ask GPU 3 for its activity".into()));
    }

    #[test]
    fn a_lost_gpu_is_asked_nothing_more_until_the_next_round() {
        let mut answers = Answers::of(0);
        assert_eq!(answers.ask::<u32>("power", || Err(NvmlError::GpuLost)), None);
        assert_eq!(answers.ask("clock", || -> Result<u32, _> { panic!("asked") }), None);
        assert_eq!((answers.state, answers.take_failed().len()), (State::Lost, 1));
        answers.begin();
        assert_eq!(answers.ask("power", || Ok(7)), Some(7));
    }
}
