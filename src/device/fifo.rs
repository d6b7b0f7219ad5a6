//! Bytes that wait for whoever reads them.

/// Up to `N` bytes, the first in first out; `N` is at least 1.
#[derive(Clone, Debug)]
pub struct Fifo<const N: usize> {
    bytes: [u8; N],
    first: usize,
    used: usize,
}

impl<const N: usize> Fifo<N> {
    /// Nothing waits.
    pub const EMPTY: Self = Self { bytes: [0; N], first: 0, used: 0 };

    /// How many bytes wait.
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether none does.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds a byte. Whether there was room for it below `most` bytes.
    pub fn push(&mut self, byte: u8, most: usize) -> bool {
        // Both are below N, a power of two or a few bytes: no overflow, and the remainder is an index.
        let at = self.first.wrapping_add(self.used) % N;
        match self.bytes.get_mut(at) {
            Some(place) if self.used < most.min(N) => {
                *place = byte;
                self.used = self.used.wrapping_add(1);
                true
            }
            _ => false,
        }
    }

    /// Takes the first byte.
    pub fn pop(&mut self) -> Option<u8> {
        self.used = self.used.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.first = self.first.wrapping_add(1) % N;
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_queue_with_an_end(steps in prop::collection::vec(prop::option::of((any::<u8>(), 0_usize..9)), 0..200)) {
            let (mut fifo, mut queue) = (Fifo::<7>::EMPTY, VecDeque::new());
            for step in steps {
                match step {
                    Some((byte, most)) => {
                        let room = queue.len() < most.min(7);
                        prop_assert_eq!(fifo.push(byte, most), room);
                        if room {
                            queue.push_back(byte);
                        }
                    }
                    None => prop_assert_eq!(fifo.pop(), queue.pop_front()),
                }
                prop_assert_eq!((fifo.len(), fifo.is_empty()), (queue.len(), queue.is_empty()));
            }
        }
    }
}
