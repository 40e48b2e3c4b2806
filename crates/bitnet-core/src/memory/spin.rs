//! A lock for what one thread alone uses as a rule.
//!
//! Taking it is one atomic instruction and giving it back none, where a mutex that threads can sleep on needs one for each,
//! at a tenth of what an allocation may take. So nobody may wait for another lock under it, and who finds it taken looks
//! again, then gives way, then sleeps.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::sync::{AtomicBool, Ordering, wait};

/// A value that one thread at a time can use.
#[derive(Default)]
pub(crate) struct Spin<T> {
    is_taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the guard only, of which there is one at a time, like that of a `Mutex<T>`.
unsafe impl<T: Send> Sync for Spin<T> {}

/// The value, until it is dropped. Sharing it shares a `&T`, which the marker keeps to those that allow it.
pub(crate) struct SpinGuard<'a, T>(&'a Spin<T>, PhantomData<&'a mut T>);

impl<T> Spin<T> {
    pub(crate) fn new(value: T) -> Self {
        Spin { is_taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        let mut n_looks = 0;
        while self.is_taken.swap(true, Ordering::Acquire) {
            wait(n_looks);
            n_looks += 1;
        }
        SpinGuard(self, PhantomData)
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is no other guard.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is no other guard, and this one is borrowed mutably.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

impl<T> fmt::Debug for Spin<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spin").finish_non_exhaustive()
    }
}
