service Echo {
  binary call(1: binary payload),
  oneway void note(1: binary payload),
}
