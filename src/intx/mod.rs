//! One physical interrupt line, from assertion to completion.
