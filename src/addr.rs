//! Addresses that cannot be mixed up, and page arithmetic that cannot overflow.

use core::fmt;

/// Bytes in the page that nested paging protects (4 KiB).
pub const PAGE_BYTES: u64 = 4096;
/// Bytes in a large page (2 MiB).
pub const LARGE_PAGE_BYTES: u64 = 2 * 1024 * 1024;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address; says nothing about what is there.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The start of the 4 KiB page that holds this address.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_BYTES - 1))
            }

            /// The offset within the 4 KiB page, in bytes.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_BYTES - 1)
            }

            /// Whether the address is a multiple of `align`, which is a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// An address on the machine's own bus: what page tables and device registers of the host hold.
    HostPhys,
    "hpa"
);
address!(
    /// An address a guest believes to be physical: the input of nested paging.
    GuestPhys,
    "gpa"
);

/// Rounds `bytes` up to whole 4 KiB pages; `None` when the result does not fit.
pub const fn page_align_up(bytes: u64) -> Option<u64> {
    match bytes.checked_add(PAGE_BYTES - 1) {
        Some(sum) => Some(sum & !(PAGE_BYTES - 1)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_arithmetic_at_the_edges() {
        let a = GuestPhys::new(0x1fff);
        assert_eq!(a.page(), GuestPhys::new(0x1000));
        assert_eq!(a.page_offset(), 0xfff);
        assert!(!a.is_aligned(PAGE_BYTES));
        assert_eq!(a.checked_add(1), Some(GuestPhys::new(0x2000)));
        assert_eq!(GuestPhys::new(u64::MAX).checked_add(1), None);
        assert_eq!(page_align_up(0), Some(0));
        assert_eq!(page_align_up(1), Some(PAGE_BYTES));
        assert_eq!(page_align_up(u64::MAX), None);
    }
}
