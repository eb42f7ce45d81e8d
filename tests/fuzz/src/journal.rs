//! Memory for the notes of a process that may be killed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow::Keep;

/// The memory. Clones are the same.
#[derive(Clone, Debug)]
pub struct Journal {
    words: Arc<Mutex<Vec<u64>>>,
}

impl Journal {
    /// So many words, all zero.
    pub fn new(len: usize) -> Self {
        Self {
            words: Arc::new(Mutex::new(vec![0; len])),
        }
    }

    /// What it holds now, in memory of its own.
    pub fn copy(&self) -> Self {
        let words = self.lock().clone();
        Self {
            words: Arc::new(Mutex::new(words)),
        }
    }

    /// Whoever shares the memory changes a word.
    pub fn flip(&self, at: u32, bits: u64) {
        let mut words = self.lock();
        let index = at as usize % words.len().max(1);
        if let Some(word) = words.get_mut(index) {
            *word ^= bits;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keep for Journal {
    fn len(&self) -> usize {
        self.lock().len()
    }

    fn load(&self, at: usize) -> u64 {
        self.lock()[at]
    }

    fn store(&self, at: usize, word: u64) {
        self.lock()[at] = word;
    }
}
