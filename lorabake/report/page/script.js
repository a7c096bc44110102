"use strict";
// What scrolls takes part in the keyboard's order, so that the arrow keys can scroll it.
const scrolled = new ResizeObserver((boxes) => {
  for (const { target } of boxes) {
    const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (scrolls && getComputedStyle(target).overflowX !== "visible") target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".wide, .strip, pre")) scrolled.observe(box);

// The slider between two pictures. It takes the pictures that the page already shows.
const panel = document.getElementById("compare");
if (panel) {
  const stage = panel.querySelector(".stage");
  const range = panel.querySelector("input[type=range]");
  const [prompt, left, right] = panel.querySelectorAll("select");
  const shown = { left: stage.querySelector(".left"), right: stage.querySelector(".right") };

  const move = () => {
    stage.style.setProperty("--cut", `${range.value}%`);
    const name = (choice) => choice.selectedOptions[0].textContent.trim();
    range.setAttribute("aria-valuetext", `${range.value} % ${name(left)}, ${100 - range.value} % ${name(right)}`);
  };
  const choose = () => {
    const row = document.getElementById(`prompt-${prompt.value}`);
    for (const [side, choice] of [["left", left], ["right", right]]) {
      const picture = row.querySelector(`img[data-model="${choice.value}"]`);
      for (const name of ["src", "alt", "width", "height"]) shown[side].setAttribute(name, picture.getAttribute(name));
      shown[side].classList.toggle("small", picture.classList.contains("small"));
      panel.querySelector(`output.${side}`).textContent = choice.selectedOptions[0].textContent.trim();
    }
    move();
  };

  range.addEventListener("input", move);
  for (const choice of [prompt, left, right]) choice.addEventListener("change", choose);
  panel.hidden = false;
  choose();
}
