// Regenerate with: thrift --gen py -out examples/thrift_calculator examples/thrift_calculator/calculator.thrift

exception DivisionByZero {
  1: string message
}

service Calculator {
  i64 add(1: i64 a, 2: i64 b),

  double divide(1: double dividend, 2: double divisor) throws (1: DivisionByZero error),

  // Takes its time, so that there is something in flight when the server is told to stop.
  i64 add_slowly(1: i64 a, 2: i64 b, 3: i32 delay_ms),
}
