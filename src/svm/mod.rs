//! AMD SVM formats: the VMCB, exit codes, events, nested page tables and permission maps.
