//! `bulkhead-boot`: Kernel loading and ACPI tables: pure functions over guest memory.
