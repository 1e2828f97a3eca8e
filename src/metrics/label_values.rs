//! A macro that defines the values of a metric's label as an enum, so that their order and words are in one list.

/// Defines an enum whose variants are the values of a label, each with its word. A counter for each of them is an array
/// of `COUNT` elements, indexed by `value as usize`.
macro_rules! label_values {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident { $( $(#[$doc:meta])* $variant:ident = $word:literal, )+ }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$doc])* $variant, )+ }

        impl $name {
            /// All of them, in order.
            pub const ALL: [$name; [$( $word ),+].len()] = [$( $name::$variant ),+];

            /// How many there are.
            pub const COUNT: usize = $name::ALL.len();

            /// One word for logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $word, )+ }
            }

            /// Pairs the word of each value with its counter.
            pub(in crate::metrics) fn label<T>(
                counters: [T; $name::COUNT],
            ) -> impl Iterator<Item = (&'static str, T)> {
                $name::ALL.into_iter().map($name::as_str).zip(counters)
            }
        }
    };
}

pub(crate) use label_values;
