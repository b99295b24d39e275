// Follows the newest text, until the reader scrolls up.

const NEAR = 48; // pixels from the end that count as there

export class Follower {
  constructor(scroller, button) {
    Object.assign(this, { scroller, button, follows: true, last: 0 });
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(scroller); // a keyboard that slides in, a question of many lines
    button.addEventListener("click", () => this.toEnd());
  }

  get fromEnd() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop;
  }

  scrolled() {
    const { scrollTop } = this.scroller;
    const { fromEnd } = this;
    if (scrollTop < this.last && fromEnd > 2) this.follows = false;
    else if (scrollTop > this.last && fromEnd < NEAR) this.follows = true;
    this.last = scrollTop;
    this.show();
  }

  /** After the text grew. */
  follow() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.show();
  }

  toEnd() {
    this.follows = true;
    this.follow();
  }

  show() {
    this.button.hidden = this.follows || this.fromEnd < NEAR;
  }
}
