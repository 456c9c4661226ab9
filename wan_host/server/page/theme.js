// Before the first paint, so that a chosen theme does not flash; without a choice the system's is used.
{
  const chosen = localStorage.getItem("wan-host-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
