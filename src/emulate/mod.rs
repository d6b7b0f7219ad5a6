//! Guest instructions: fetched through the guest's own page tables, decoded by `iced-x86`.
